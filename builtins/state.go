package builtins

import (
	"net/netip"

	"go.starlark.net/starlark"

	"bj/fleet"
	"bj/lang"
	"bj/lang/diag"
)

// A mistake is a diagnostic whose argument has not been found in the source
// yet.
type mistake struct {
	at  at
	arg lang.Arg
	d   diag.Diagnostic
}

// A state is what one module has declared so far.
type state struct {
	module   *lang.Module
	mistakes []mistake
	services []*fleet.Service
	recipes  []*fleet.Recipe
	// phantoms are the names of services that are declared with mistakes: they
	// are not in the fleet, but nobody who names them is to blame.
	phantoms []string
	broken   []*fleet.Recipe
	settings *fleet.Workspace
	// machines counts the machines that have been given addresses by default,
	// here and, as a module may use the hardware of those that it loads, in
	// the one of them that has most.
	machines int
}

func beginModule(m *lang.Module, loads []*lang.Module) any {
	s := &state{module: m}
	for _, dep := range loads {
		if d, ok := dep.State.(*state); ok {
			s.machines = max(s.machines, d.machines)
		}
	}
	return s
}

// maxMachines is how many machines a module can declare.
const maxMachines = 10_000

// defaultAddresses are those of the n'th machine, from 0, of a module.
func defaultAddresses(n int) (v4, v6 netip.Addr) {
	n += 10
	v4 = netip.AddrFrom4([4]byte{198, byte(18 + n>>16), byte(n >> 8), byte(n)})
	a := netip.MustParseAddr("fd62:6a::").As16()
	h := n - 10 + 0x10
	a[13], a[14], a[15] = byte(h>>16), byte(h>>8), byte(h)
	return v4, netip.AddrFrom16(a)
}

// builtin makes the builtin of a signature. f may assume nothing of the
// arguments: mistakes are collected, and it must return something even then.
func builtin(sig *signature, f func(*call) starlark.Value) *starlark.Builtin {
	return starlark.NewBuiltin(sig.name, func(thread *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		if len(kwargs) > 256 || len(args) > 4096 {
			return nil, &lang.CodedError{Rule: "argument", Message: sig.name + " has too many arguments"}
		}
		c := begin(thread, sig, args, kwargs)
		if len(c.state.mistakes) > maxMistakes {
			return nil, &lang.CodedError{Rule: "mistakes", Message: "too many mistakes in this file"}
		}
		return f(c), nil
	})
}

// maxMistakes is how many mistakes one module may collect before it is cut off.
const maxMistakes = 1000
