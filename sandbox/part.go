package sandbox

import (
	"context"
	"fmt"
	"net/netip"
)

// Part is one thing of the host that machines need, and what came of using it.
type Part struct {
	Name  string // a word
	Text  string // what it is good for
	Err   error  // what is missing, an *Error where it is known what mends it; nil if nothing is
	Vital bool   // no machine can do without it
}

// With returns the part with what came of using it: an error, or words about what
// was done.
func (p Part) With(err error, did string) Part {
	if p.Err = err; err == nil {
		p.Text += ": " + did
	}
	return p
}

// Try leases one machine of p, seals it under policy and runs a command, since
// nothing less tells whether that works. The command is of the first unit that
// the policy names.
func Try(ctx context.Context, p Provider, policy Policy) error {
	env, err := p.Lease(ctx, Spec{Owner: "doctor", Policy: policy, Machines: []MachineSpec{{
		Name: "probe", CPUs: 1, Memory: 64 << 20, Disk: 16 << 20,
		V4: netip.MustParseAddr("198.18.0.10"), V6: netip.MustParseAddr("fd62:6a::10"),
	}}})
	if err != nil {
		return err
	}
	defer env.Release(context.WithoutCancel(ctx))
	if err := env.Seal(ctx, policy); err != nil {
		return err
	}
	unit := "probe"
	if len(policy.Units) > 0 {
		unit = policy.Units[0]
	}
	proc, err := env.Machines()[0].Start(ctx, Command{Argv: []string{"/bin/true"}, Unit: unit}, func(Stream, []byte) {})
	if err != nil {
		return AsError(err, CodeLease)
	}
	exit, err := proc.Wait(ctx)
	if err != nil {
		return AsError(err, CodeLease)
	}
	if exit.Code != 0 {
		return &Error{Code: CodeLease, Err: fmt.Errorf("running /bin/true in a machine: exit code %d", exit.Code)}
	}
	return nil
}
