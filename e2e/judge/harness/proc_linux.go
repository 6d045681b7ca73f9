package harness

import "syscall"

// The server dies with the judge, whatever ends the judge.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
