// Command judge runs programs that judge an etcd server from outside.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"sort"
	"syscall"

	"rusd/judge/harness"
)

var commands = map[string]struct {
	run  func(args []string) error
	help string
}{}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]].run == nil {
		fmt.Fprintln(os.Stderr, "usage: judge COMMAND [flags]   (judge COMMAND -h lists a command's flags)")
		names := make([]string, 0, len(commands))
		for n := range commands {
			names = append(names, n)
		}
		sort.Strings(names)
		for _, n := range names {
			fmt.Fprintf(os.Stderr, "  %-10s %s\n", n, commands[n].help)
		}
		os.Exit(2)
	}
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-sig
		harness.Cleanup()
		os.Exit(130)
	}()
	err := func() error {
		defer harness.Cleanup()
		return commands[os.Args[1]].run(os.Args[2:])
	}()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: FAILED: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
