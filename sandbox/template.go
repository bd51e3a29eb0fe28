package sandbox

import "context"

// Templater is a Provider whose machines can start from a template: the state of
// a machine that has booted and waits to be told who it is. The pool keeps the
// templates; the provider makes them and starts machines from them.
//
//	boot ── waits for its identity ── told, and has acknowledged ── sealed ── commands
//	               ▲
//	            a template is saved here, and restored any number of times
//
// A machine that boots and one that is restored go the same way from there: the
// provider tells it its name, machine id, addresses, clock and fresh random
// bytes, and nothing of a lease runs before it has acknowledged them. So no two
// machines of one template share any of that.
type Templater interface {
	Provider
	// Template says what m starts from. It makes nothing that takes long beyond
	// the image itself.
	Template(ctx context.Context, m MachineSpec) (Template, error)
	// Fill boots a machine without any network, and saves it into dir, an empty
	// folder; whatever else it made is gone when it returns. Dir is complete only
	// if there is no error.
	Fill(ctx context.Context, t Template, dir string) error
	// LeaseFrom is Lease, but the machines that from names start from the template
	// in that folder, which it does not change. A template that cannot be used
	// is an error of ErrTemplate.
	LeaseFrom(ctx context.Context, spec Spec, from map[string]string) (Environment, error)
}

// Template is what machines that are alike start from.
type Template struct {
	// Key is a digest of everything that is in the template: kernel, initramfs and
	// so the agent, root, processors, memory, devices, the emulator's version.
	// Empty if such a machine cannot have a template.
	Key string
	// Origin is a digest of the part that is the provider's own, such as agent and
	// bj. Templates of another origin are of no use to anyone any more.
	Origin string
	About  string // for people: "Debian 12 (...), 1 CPU, 256 MiB"
	// Machine is the one that Template was asked about, without name, addresses
	// and files.
	Machine MachineSpec
}
