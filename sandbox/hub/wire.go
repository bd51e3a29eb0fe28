package hub

import (
	"errors"
	"net/netip"
	"syscall"

	"bj/sandbox"
)

// What travels between bj and the gateway. Requests of bj: setup, seal,
// expect, flows, rules, witness, dial, crash. Requests of the gateway: dial, which bj
// answers with a connected socket: the only way out.

type sealRequest struct {
	Policy sandbox.Policy
}

// Flows is what a seal has seen.
type Flows struct {
	Blocked []sandbox.Flow
	Used    []sandbox.Use
	Seen    []CanaryKey // canaries that were seen being dropped
}

// expectRequest announces canaries, which are told apart from what the recipe
// tries.
type expectRequest struct {
	Canaries []CanaryKey
}

type dialRequest struct {
	Network string
	To      netip.AddrPort
}

// MachineRequest names a machine.
type MachineRequest struct {
	Machine int
}

// witnessAnswer is what was seen behind the point of enforcement.
type witnessAnswer struct {
	Leaked int64 // packets on the witness link since the environment began
}

func toWire(err error) *wireError {
	w := &wireError{Text: err.Error()}
	var se *sandbox.Error
	if errors.As(err, &se) {
		w.Code, w.Hint = string(se.Code), se.Hint
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		w.Errno = int(errno)
	}
	return w
}

// err returns the error as the other side had it, as far as the wire keeps it.
func (w *wireError) err() error {
	var err error = errors.New(w.Text)
	if w.Errno != 0 {
		err = &errnoError{text: w.Text, errno: syscall.Errno(w.Errno)}
	}
	if w.Code != "" {
		return &sandbox.Error{Code: sandbox.Code(w.Code), Err: err, Hint: w.Hint}
	}
	return err
}

// errnoError keeps the system's error number beside the text.
type errnoError struct {
	text  string
	errno syscall.Errno
}

func (e *errnoError) Error() string { return e.text }
func (e *errnoError) Unwrap() error { return e.errno }
