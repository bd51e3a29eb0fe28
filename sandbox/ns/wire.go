package ns

import (
	"errors"
	"net/netip"
	"syscall"

	"bj/sandbox"
)

// What travels between bj and the gateway. Requests of bj: setup, seal,
// expect, flows, rules, witness, dial, crash. Requests of the gateway: dial, which bj
// answers with a connected socket: the only way out.

// setupRequest makes the hub and the machines. Its descriptors are, for each
// machine in order, the guest's end of its agent's channel.
type setupRequest struct {
	Machines []machineConfig
	Root     rootConfig
	IDs      []idRange // never empty; each within one range of the gateway's own
}

// idRange maps Count ids of the machine, from Inside, to those of the gateway's
// namespace from First.
type idRange struct {
	Inside uint32
	First  uint32
	Count  uint32
}

// machineConfig is one machine as its first process needs it.
type machineConfig struct {
	Name    string
	Index   int
	V4, V6  netip.Addr
	Disk    int64    // bytes
	Cgroups []string // folders, on the host, to whose cgroup.procs the machine goes
	Units   string   // the one of them, in the unified hierarchy, where the agent makes units; "" if none
	Events  string   // file of the cgroup that counts what the memory limit killed; "" without limits
	Layers  []string // folders of the host laid over its root, the first on top
	Binds   []bind
}

// bind is a file of the host that the machine sees read-only.
type bind struct {
	Source string
	Path   string
}

// rootConfig is what all machines of an environment share.
type rootConfig struct {
	Hosts  string   // /etc/hosts
	Resolv string   // /etc/resolv.conf
	Shadow string   // /etc/shadow, without any hash
	Hidden []string // paths below /etc that a machine must not see
	Idmap  bool     // map the host's files to the machine's ids
}

type sealRequest struct {
	Policy sandbox.Policy
}

type flowsAnswer struct {
	Blocked []sandbox.Flow
	Used    []sandbox.Use
	Seen    []canaryKey // canaries that were seen being dropped
}

// expectRequest announces canaries, which are told apart from what the recipe
// tries.
type expectRequest struct {
	Canaries []canaryKey
}

type dialRequest struct {
	Network string
	To      netip.AddrPort
}

type machineRequest struct {
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
