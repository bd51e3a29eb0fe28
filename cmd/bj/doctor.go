package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"bj/lang"
	"bj/sandbox"
	"bj/sandbox/libvirt"
	"bj/sandbox/ns"
)

func doctorCommand() *command {
	return &command{
		name:  "doctor",
		short: "says what this machine can run, and how to mend what it cannot",
		long: `uses each thing that the machines of every sandbox need of this host: room on disk;
links, packet filters, user namespaces and what else of the kernel; libvirt, the
emulator, a kernel and KVM for virtual machines. then it leases a machine from
every sandbox, seals it and runs a command in it, since nothing less tells whether
that works. beside that it looks for the programs that make tools. it removes what
environments without a living owner have left. "broken" is what bj test cannot do
without in the sandbox that BJ_SANDBOX or the workspace names, "missing" all else,
and below each is what mends it. exit 0 says that bj test can run, 3 that it cannot.`,
		run: runDoctor,
	}
}

// finding is what doctor found out about one thing.
type finding struct {
	name, text string
	err        error  // what is missing
	mend       string // the command that mends it
	vital      bool   // bj test cannot run without it
}

// doctor is one visit.
type doctor struct {
	*env
	cache   string
	sandbox string // the one that bj test takes its machines from
	failed  bool
}

func runDoctor(ctx context.Context, e *env, args []string) error {
	if err := noArguments("doctor", args); err != nil {
		return err
	}
	d := &doctor{env: e}
	cache, done, err := e.cache()
	if err != nil {
		return err
	}
	defer done()
	d.cache = cache
	if d.sandbox, err = d.chooseSandbox(ctx); err != nil {
		return err
	}
	for _, look := range []func(context.Context){d.lookAtHost, d.lookAtNamespace, d.lookAtVirtual, d.lookForPrograms} {
		if look(ctx); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if d.failed {
		return &failure{code: exitError, err: errors.New("this machine cannot run bj test"), hint: "mend what is broken above, and run bj doctor again"}
	}
	fmt.Fprintln(e.stdout, "bj test can run here")
	return nil
}

// chooseSandbox returns what bj test takes if nothing else is said. A workspace
// that cannot be loaded names none.
func (d *doctor) chooseSandbox(ctx context.Context) (string, error) {
	ofWorkspace := ""
	if d.getenv("BJ_SANDBOX") == "" {
		if _, result, err := d.loadWorkspace(ctx); err == nil && result.Fleet != nil {
			ofWorkspace = result.Fleet.Workspace.Sandbox
		}
	}
	name, source := setting("", "", "BJ_SANDBOX", d.getenv("BJ_SANDBOX"), ofWorkspace, defaultSandbox)
	if name != defaultSandbox && name != virtualSandbox {
		return "", noSandbox(name, source)
	}
	return name, nil
}

// noSandbox says that there is no sandbox of that name.
func noSandbox(name, source string) error {
	return usage(lang.DidYouMean(name, sandboxes(), "there are: "+strings.Join(sandboxes(), ", ")), "there is no sandbox %q, which %s asks for", name, source)
}

// print says what was found, unless somebody has interrupted the search.
func (d *doctor) print(ctx context.Context, f finding) {
	if ctx.Err() != nil {
		return
	}
	state := "ok"
	switch {
	case f.err != nil && f.vital:
		state, d.failed = "broken", true
	case f.err != nil:
		state = "missing"
	}
	if f.err != nil {
		f.text = strings.TrimPrefix(f.text+": ", ": ") + f.err.Error()
	}
	fmt.Fprintf(d.stdout, "%-8s %-10s %s\n", state, f.name, indent(f.text, 20))
	if f.err != nil && f.mend != "" {
		fmt.Fprintf(d.stdout, "%-8s %-10s mend it: %s\n", "", "", indent(f.mend, 20))
	}
}

// of returns what was found of a part of that sandbox's machines.
func (d *doctor) of(sandbox string, p sandbox.Part) finding {
	return finding{name: p.Name, text: p.Text, err: p.Err, mend: hintOf(p.Err), vital: p.Vital && d.sandbox == sandbox}
}

// hubParts are those that machines of every sandbox need.
var hubParts = map[string]bool{"links": true, "nftables": true, "relay": true}

// lookAtNamespace uses what the embedded provider needs, and leases a machine.
func (d *doctor) lookAtNamespace(ctx context.Context) {
	agent, err := staticAgent(ctx, d.cache, d.say)
	f := finding{name: "agent", text: "machines run it", err: err, mend: hintOf(err), vital: true}
	if err == nil {
		f.text = agent + ": machines run it"
	}
	if d.print(ctx, f); err != nil {
		return
	}
	for _, part := range ns.New(ns.Options{Agent: agent}).Parts(ctx, d.cache) {
		f := d.of(defaultSandbox, part)
		f.vital = part.Vital && (f.vital || hubParts[part.Name])
		d.print(ctx, f)
	}
	d.print(ctx, d.lease(ctx, defaultSandbox, "machines of namespaces can be leased and sealed"))
}

// lookAtVirtual uses what virtual machines need, and leases one where nothing is
// missing.
func (d *doctor) lookAtVirtual(ctx context.Context) {
	p := libvirt.New(d.virtual())
	parts := p.Parts(ctx)
	whole := true
	for _, part := range parts {
		d.print(ctx, d.of(virtualSandbox, part))
		whole = whole && part.Err == nil
	}
	wanted := d.sandbox == virtualSandbox
	kernel := finding{name: "kernel", text: "virtual machines boot one", vital: wanted}
	if len(parts) == 1 { // there is no libvirt
		kernel.err = errors.New("none was looked for, without libvirt")
	} else {
		kernel = d.lookAtKernel(ctx, kernel)
	}
	d.print(ctx, kernel)
	machines := finding{name: "machines", text: "virtual machines", vital: wanted, err: errors.New("none was tried, without what is missing above")}
	if whole && kernel.err == nil {
		// Something may have been mended since a machine did not run on KVM.
		if machines.err = p.ForgetKVM(); machines.err == nil {
			machines = d.lease(ctx, virtualSandbox, "virtual machines can be leased and sealed")
			machines.name = "machines"
		}
	}
	d.print(ctx, machines)
	d.print(ctx, kvm(p.KVM()))
}

func (d *doctor) virtual() libvirt.Options { return libvirt.Options{URI: d.getenv("BJ_LIBVIRT_URI")} }

// lookAtKernel looks for what virtual machines boot, and fetches it if need be.
func (d *doctor) lookAtKernel(ctx context.Context, f finding) finding {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute) // it may have to be fetched
	defer cancel()
	k, err := newStore(d.cache, "", virtualSandbox).Kernel(ctx, "", func(string) {})
	if f.err, f.mend = err, hintOf(err); err == nil {
		f.text = k.About + ": virtual machines boot it"
	}
	return f
}

// kvm says whether virtual machines are emulated, as a lease has found out.
func kvm(k libvirt.KVM) finding {
	f := finding{name: "kvm", text: "without it virtual machines are emulated, which is slow"}
	switch k.State {
	case libvirt.KVMWorks:
		f.text = "virtual machines run on it: one was booted"
	case libvirt.KVMAbsent:
		f.err = errors.New(k.Why)
		f.mend = "modprobe kvm_intel, or kvm_amd; where that says no, switch virtualization on in the firmware,\nor nested virtualization where this is a virtual machine"
	case libvirt.KVMRefused:
		f.err = errors.New("a machine was booted on it, and refused: " + k.Why)
		f.mend = "chgrp kvm /dev/kvm && chmod 660 /dev/kvm lets QEMU's account use it; else switch virtualization on in the\nfirmware, or nested virtualization where this is a virtual machine; then run bj doctor: until somebody does,\nor this host restarts, bj does not try again"
	case libvirt.KVMLate:
		f.err = errors.New("a machine was booted on it, and " + k.Why + ": KVM hangs, or this host was busy")
		f.mend = fmt.Sprintf("run bj doctor again when this host has nothing else to do; bj test tries again after %.0f minutes", libvirt.LateFor.Minutes())
	default:
		f.err = errors.New("no machine could be booted to see")
		if k.Why != "" {
			f.err = fmt.Errorf("%w: %s", f.err, k.Why)
		}
		f.mend = "mend what is missing above"
	}
	return f
}

// hintOf is what mends an error, if it knows.
func hintOf(err error) string {
	var fault *sandbox.Error
	var own *failure
	switch {
	case errors.As(err, &fault):
		return fault.Hint
	case errors.As(err, &own):
		return own.hint
	}
	return ""
}

// lease leases a machine of a sandbox, after what was left there is removed.
func (d *doctor) lease(ctx context.Context, name, works string) finding {
	f := finding{name: name, text: "--sandbox " + name, vital: d.sandbox == name}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute) // an image may have to be made
	defer cancel()
	words := []string{works}
	p, err := newProvider(ctx, name, "bj doctor", d.cache, newStore(d.cache, "", name), func(s string) { words = append(words, s) })
	if err == nil {
		var removed []string
		if removed, err = p.Reap(ctx); len(removed) > 0 {
			words = append(words, "removed what was left: "+fmt.Sprint(removed))
		}
	}
	if err == nil {
		err = p.Check(ctx)
	}
	if f.err, f.mend = err, hintOf(err); err == nil {
		f.text = strings.Join(words, "\n")
	}
	return f
}
