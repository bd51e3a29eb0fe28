package agent

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Enter confines this process and makes its calling thread stop in calls that
// name a destination, as commands do, for what the thread executes next: the
// machine's own init system, which the agent is beside of. The listener is for
// Options.Watched of the agent; it is -1 where nobody can watch. Until the agent
// has it, the thread must make none of those calls. The calling goroutine must
// be locked to its thread.
func Enter() (listener int, err error) {
	if err := confine(false); err != nil {
		return -1, err
	}
	listener, err = watch()
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) {
		return -1, nil
	}
	return listener, err
}
