package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/image"
	"bj/sandbox/libvirt"
	"bj/sandbox/pool"
)

func doctorCommand() *command {
	return &command{
		name:  "doctor",
		short: "says what this machine can run, and how to mend what it cannot",
		long: `leases a machine from every sandbox that there is, seals it and runs a command in
it, since nothing less tells whether that works. beside that it looks at room on
disk, at libvirt, the emulator, the kernel and KVM for virtual machines, and for
the programs that make tools. it removes what environments without a living owner
have left. exit 0 says that bj test can run, 3 that it cannot; virtual machines
count where BJ_SANDBOX=libvirt asks for them.`,
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

func runDoctor(ctx context.Context, e *env, args []string) error {
	if err := noArguments("doctor", args); err != nil {
		return err
	}
	failed := false
	for _, look := range []func(context.Context, *env) finding{
		lookAtSystem, lookAtCache, lookAtDisk, lookAtNamespace, lookAtLibvirt, lookAtKernel, lookAtVirtual, lookAtKVM,
		lookForProgram("go", `tool(go = ...) is built with it`, "install Go from https://go.dev/dl, or: apt-get install golang-go"),
		lookForProgram("apt-get", `tool(deb = ...) is fetched with it`, "a Debian machine has it"),
		lookForProgram("dpkg-deb", `tool(deb = ...) is unpacked with it`, "apt-get install dpkg"),
		lookForProgram("git", "bj test --changed-since asks it", "apt-get install git"),
	} {
		f := look(ctx, e)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		state := "ok"
		switch {
		case f.err != nil && f.vital:
			state, failed = "broken", true
			f.text = f.err.Error()
		case f.err != nil:
			state = "missing"
			f.text += ": " + f.err.Error()
		}
		fmt.Fprintf(e.stdout, "%-8s %-10s %s\n", state, f.name, indent(f.text, 20))
		if f.err != nil && f.mend != "" {
			fmt.Fprintf(e.stdout, "%-8s %-10s mend it: %s\n", "", "", indent(f.mend, 20))
		}
	}
	if failed {
		return &failure{code: exitError, err: errors.New("this machine cannot run bj test"), hint: "mend what is broken above, and run bj doctor again"}
	}
	fmt.Fprintln(e.stdout, "bj test can run here")
	return nil
}

// lookAtSystem says what this is.
func lookAtSystem(context.Context, *env) finding {
	f := finding{name: "system", vital: true}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		f.err = fmt.Errorf("asking the kernel its name: %w", err)
		return f
	}
	user := "root"
	if os.Geteuid() != 0 {
		user = "an ordinary user"
	}
	f.text = fmt.Sprintf("bj %s on %s %s, %s, %s, as %s", version,
		unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, plural(runtime.NumCPU(), "core"), user)
	return f
}

// lookAtCache says where the cache is, and whether it can be written.
func lookAtCache(_ context.Context, e *env) finding {
	f := finding{name: "cache", vital: true, mend: "name a folder that can be written: BJ_CACHE=/var/tmp/bj"}
	dir, err := e.cacheDir()
	if err != nil {
		f.err = err
		return f
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.err = fmt.Errorf("making the cache: %w", err)
		return f
	}
	probe, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		f.err = fmt.Errorf("writing to the cache: %w", err)
		return f
	}
	defer os.Remove(probe.Name())
	defer probe.Close()
	f.text = dir
	u, err := newStore(dir, "", defaultSandbox).Usage()
	if err != nil {
		f.err = err
		return f
	}
	f.text += fmt.Sprintf("\ntools and images take %d MiB; beyond %d MiB what was not used for the longest time goes", u.Total()>>20, int64(image.DefaultBound)>>20)
	if templates, err := pool.New(nil, pool.Options{Dir: filepath.Join(dir, "pool", virtualSandbox)}).Status(); err == nil && len(templates) > 0 {
		var sum int64
		for _, t := range templates {
			sum += t.Bytes
		}
		f.text += fmt.Sprintf("\n%s of virtual machines, %d MiB: bj pool status lists them", plural(len(templates), "template"), sum>>20)
	}
	return f
}

// What bj test needs on disk: a little for any recipe, more for the images of
// virtual machines, in bytes.
const (
	leastDisk   = 64 << 20
	virtualDisk = 2 << 30
)

// lookAtDisk says how much room there is where bj writes.
func lookAtDisk(_ context.Context, e *env) finding {
	f := finding{name: "disk", vital: true}
	cache, err := e.cacheDir()
	if err != nil {
		f.err = err
		return f
	}
	var lines []string
	for _, place := range []struct{ what, dir string }{{"cache", cache}, {"temporary files", os.TempDir()}, {"leases", "/run"}} {
		var fs unix.Statfs_t
		if err := unix.Statfs(place.dir, &fs); err != nil {
			f.err = fmt.Errorf("asking how much room there is in %s: %w", place.dir, err)
			return f
		}
		free := int64(fs.Bavail) * fs.Bsize
		if free < leastDisk && f.err == nil {
			f.err = fmt.Errorf("%s has %d MiB left, and %d are needed", place.dir, free>>20, leastDisk>>20)
			f.mend = "df -h " + place.dir + " says which disk that is"
			if place.dir == cache {
				f.mend += "; BJ_CACHE names another folder"
			}
		}
		line := fmt.Sprintf("%d MiB left in %s, for %s", free>>20, place.dir, place.what)
		if place.dir == cache && free < virtualDisk {
			line += fmt.Sprintf("\nimages of virtual machines take about %d MiB: BJ_CACHE names another folder", int64(virtualDisk)>>20)
		}
		lines = append(lines, line)
	}
	f.text = strings.Join(lines, "\n")
	return f
}

// lookAtNamespace leases a machine of the embedded provider.
func lookAtNamespace(ctx context.Context, e *env) finding {
	f := lookAtSandbox(ctx, e, defaultSandbox, "machines of namespaces can be leased and sealed")
	f.vital = true
	return f
}

// lookAtLibvirt asks libvirt what it is; bj test has no need of virtual machines
// unless it is asked for some.
func lookAtLibvirt(ctx context.Context, e *env) finding {
	about, err := libvirt.New(libvirt.Options{URI: os.Getenv("BJ_LIBVIRT_URI")}).About(ctx)
	return finding{name: "libvirt", text: about, mend: hintOf(err), err: err, vital: wantsVirtual(e)}.or("--sandbox libvirt")
}

// wantsVirtual reports whether bj test makes virtual machines if nothing else is said.
func wantsVirtual(e *env) bool { return e.getenv("BJ_SANDBOX") == virtualSandbox }

// lookAtKernel looks for what virtual machines boot, and fetches it if need be,
// where there is a libvirt.
func lookAtKernel(ctx context.Context, e *env) finding {
	if f := lookAtLibvirt(ctx, e); f.err != nil {
		return finding{name: "kernel", text: "virtual machines boot one", err: errors.New("none was looked for, without libvirt")}
	}
	dir, err := e.cacheDir()
	if err != nil {
		return finding{name: "kernel", text: "virtual machines boot one", err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute) // it may have to be fetched
	defer cancel()
	k, err := newStore(dir, "", virtualSandbox).Kernel(ctx, "", func(string) {})
	return finding{name: "kernel", text: k.About + ": virtual machines boot it", err: err, mend: hintOf(err), vital: wantsVirtual(e)}.or("virtual machines boot one")
}

// lookAtVirtual leases a virtual machine, where there is a libvirt.
func lookAtVirtual(ctx context.Context, e *env) finding {
	if f := lookAtLibvirt(ctx, e); f.err != nil {
		return finding{name: "machines", text: "virtual machines", err: errors.New("none was tried, without libvirt")}
	}
	f := lookAtSandbox(ctx, e, virtualSandbox, "virtual machines can be leased and sealed")
	f.name, f.vital = "machines", wantsVirtual(e)
	return f
}

// lookAtKVM says whether virtual machines are emulated, as a lease has found out.
func lookAtKVM(context.Context, *env) finding {
	f := finding{name: "kvm", text: "virtual machines run on it: one was booted"}
	works, known := libvirt.New(libvirt.Options{}).Accelerated()
	if works {
		return f
	}
	f.text = "without it virtual machines are emulated, which is slow"
	_, err := os.Stat("/dev/kvm")
	switch {
	case err != nil:
		f.err = errors.New("there is no /dev/kvm")
	case known:
		f.err = errors.New("a machine that was booted on it did not come up")
	default:
		f.err = errors.New("no machine could be booted to see")
	}
	f.mend = "switch virtualization on in the firmware, or nested virtualization where this is a virtual machine;\nthen modprobe kvm_intel or kvm_amd, and restart: the answer is kept until then"
	return f
}

// or returns the finding with words that fit where something is missing.
func (f finding) or(missing string) finding {
	if f.err != nil {
		f.text = missing
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

func lookAtSandbox(ctx context.Context, e *env, name, works string) finding {
	f := finding{name: name, text: works}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute) // agent and image may have to be made
	defer cancel()
	cache, err := e.cacheDir()
	if err != nil {
		cache = filepath.Join(os.TempDir(), "bj-cache")
	}
	var words []string
	p, err := newProvider(ctx, name, "bj doctor", cache, newStore(cache, "", name), func(s string) { words = append(words, s) })
	if err == nil {
		var removed []string
		if removed, err = p.Reap(ctx); len(removed) > 0 {
			words = append(words, "removed what was left: "+fmt.Sprint(removed))
		}
	}
	if err == nil {
		err = p.Check(ctx)
	}
	if err == nil {
		f.text = strings.Join(append([]string{works}, words...), "\n")
	} else {
		f.text = "--sandbox " + name
	}
	f.err = err
	f.mend = hintOf(err)
	return f
}

// lookForProgram looks for a program on PATH, and says what it is for.
func lookForProgram(name, use, mend string) func(context.Context, *env) finding {
	return func(context.Context, *env) finding {
		path, err := exec.LookPath(name)
		if err != nil {
			return finding{name: name, text: use, err: errors.New("it is not on PATH"), mend: mend}
		}
		return finding{name: name, text: path + ": " + use}
	}
}
