package harness

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

var (
	starterOnce sync.Once
	toStart     chan start
)

// start is a command, and where its error goes.
type start struct {
	cmd *exec.Cmd
	err chan error
}

// startChild starts a command whose process dies with the judge, whatever ends the judge.
//
// The kernel sends that signal when the thread that started the process ends, not when the judge
// does, and Go ends threads as it likes. So one thread, which is never given back, starts them all.
func startChild(cmd *exec.Cmd) error {
	starterOnce.Do(func() {
		toStart = make(chan start)
		go func() {
			runtime.LockOSThread()
			for s := range toStart {
				s.err <- s.cmd.Start()
			}
		}()
	})
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s := start{cmd, make(chan error, 1)}
	toStart <- s
	return <-s.err
}
