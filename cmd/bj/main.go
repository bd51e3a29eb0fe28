// Command bj proves by running it that infrastructure can come back from the
// worst outage.
//
// The program is the command line, the machines' agent and the sandbox's
// gateway. The last two are hidden commands, dispatched before anything else is
// made: every process of a lease pays for what main does before them.
//
//	main.go       the order of things, signals, panics
//	errors.go     what went wrong, as exit code and as words
//	command.go    the command table, over cobra
//	<name>.go     one command: usage, flags, run
//	env.go        what a command sees of the world; settings and their precedence
//	agent.go      the static program that machines run
//	bazel.go      what Bazel expects of a test
//	shard.go      which part of the recipes an engine's job takes
//	changed.go    which recipes a change can affect
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"bj/sandbox/libvirt"
	"bj/sandbox/ns"
)

func main() {
	if hidden(os.Args) {
		return
	}
	os.Exit(runArgs(os.Args[1:]))
}

// hidden runs a hidden command, if args name one, and reports whether it did.
// Nothing may come before it.
func hidden(args []string) bool {
	handled, err := ns.Main(args)
	if !handled {
		handled, err = libvirt.Main(args)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bj: error: %v\n", err)
		os.Exit(exitError)
	}
	return handled
}

// errInterrupted is the cause of the context that a signal cancelled.
var errInterrupted = errors.New("interrupted")

// runArgs is bj with args, and returns its exit code.
func runArgs(args []string) int {
	// A pipe whose reader has gone is an error of the write, never our death:
	// environments are torn down first.
	signal.Ignore(syscall.SIGPIPE)
	if os.Getenv("GOGC") == "" {
		// Loading a fleet allocates much and keeps most of it: collecting less
		// often takes a third of its time away. Beyond a gigabyte memory counts.
		debug.SetGCPercent(400)
		debug.SetMemoryLimit(1 << 30)
	}
	if os.Getenv("BJ_DEBUG") == "" {
		debug.SetTraceback("none")
	}
	e := newEnv()
	ctx, stop := interruptible(context.Background(), e)
	defer stop()
	err := e.guard(func() error { return execute(ctx, e, args) })
	if errors.Is(context.Cause(ctx), errInterrupted) {
		err = errInterrupted
	}
	return e.report(err)
}

// guard runs f, and makes a panic of it an error.
func (e *env) guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			if e.getenv("BJ_DEBUG") != "" {
				fmt.Fprintf(e.stderr, "%s", debug.Stack())
			}
			err = &failure{code: exitError, err: fmt.Errorf("bj itself is at fault: %v", v), hint: "run it again with BJ_DEBUG=1, and report what it prints"}
		}
	}()
	return f()
}

// interruptible returns a context that the first SIGINT, SIGTERM or SIGHUP
// cancels; a second one ends the process, and its environments with it.
func interruptible(parent context.Context, e *env) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		select {
		case <-signals:
		case <-done:
			return
		}
		cancel(errInterrupted)
		e.say("interrupted: tearing down; once more stops waiting for it")
		for {
			select {
			case <-signals:
				if !e.patient.Load() {
					e.say("interrupted again: not waiting; machines end with bj, and the next bj removes what is left of them")
					os.Exit(exitInterrupted)
				}
			case <-done:
				return
			}
		}
	}()
	return ctx, func() { signal.Stop(signals); close(done); cancel(nil) }
}
