// Package ns is the embedded provider: environments made of Linux namespaces,
// which need a kernel and nothing else, as root or as an ordinary user.
//
//	bj ── control ── gateway ─┬─ machine   first process = agent
//	 │               (hub)    ├─ machine
//	 └── agent's channels ────┘
//
// An environment is a tree of processes. Its gateway is the first process of a
// pid namespace, so that the kernel ends everything with it, and its network
// namespace is the hub, from which no link, route or address leads anywhere.
// Each machine is the first process of namespaces of its own, below a user
// namespace in which its root is root, with one link to the hub. Whatever
// leaves a machine is judged in the hub, out of that root's reach; loopback is
// judged by a table that the gateway holds (flags owner).
//
// The only way out is the relay in the gateway, which asks bj over the control
// channel to dial, and gets a connected socket. If bj dies, the kernel kills
// the gateway (its parent-death signal), and with it everything.
//
// What the kernel does not end by itself are cgroups and the lease's file; bj
// removes them, or the next bj, when the file's lock has no holder.
package ns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/hub"
	"bj/sandbox/image"
)

// The hidden commands by which bj starts itself.
const (
	gatewayCommand = "__gateway"
	machineCommand = "__machine"
	probeCommand   = "__probe"
)

// Main runs the hidden command that args (os.Args) ask for, and reports whether
// there was one. It must be called before anything else of the program: every
// machine pays for what runs earlier.
func Main(args []string) (handled bool, err error) {
	if len(args) < 2 {
		return false, nil
	}
	switch args[1] {
	case gatewayCommand:
		return true, gatewayMain(args)
	case machineCommand:
		return true, machineMain()
	case probeCommand:
		return true, probeMain(args[2:])
	}
	return false, nil
}

// Options are the provider's settings; the zero value is the default.
type Options struct {
	// Agent is the program that answers Main's commands: bj itself if empty. It
	// must be readable by those who run it, and need not be static.
	Agent string
	// State is the folder of leases: /run/bj for root, a folder below
	// $XDG_RUNTIME_DIR or the folder for temporary files for others, and where
	// those cannot be written.
	State string
	// Images makes the roots of machines that do not run on the host's; nil where
	// there are none.
	Images *image.Store
	// Notice takes words for people, such as which limits cannot be kept. Each
	// is said once.
	Notice func(string)
}

// Provider leases environments made of namespaces.
type Provider struct {
	opts  Options
	root  bool
	once  sync.Once
	etc   []string // what is hidden of /etc
	etcOK error
	cg    hierarchies
	ids   *subordinate // nil for root, and where there are none

	sealed    *os.File // the agent as machines run it; nil for ordinary users
	sealedErr error
}

// New returns the provider. It does nothing to the host.
func New(opts Options) *Provider {
	if opts.Agent == "" {
		opts.Agent = "/proc/self/exe"
	}
	if opts.State == "" {
		opts.State = stateDir()
	}
	return &Provider{opts: opts, root: os.Geteuid() == 0}
}

func stateDir() string {
	switch dir := os.Getenv("XDG_RUNTIME_DIR"); {
	case os.Geteuid() == 0 && !readOnly("/run"):
		return "/run/bj"
	case dir != "" && !readOnly(dir):
		return filepath.Join(dir, "bj")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("bj-%d", os.Geteuid()))
}

// readOnly reports whether a folder is on a file system that nobody may write,
// as in the sandboxes of build tools.
func readOnly(dir string) bool {
	var s unix.Statfs_t
	return unix.Statfs(dir, &s) == nil && s.Flags&unix.ST_RDONLY != 0
}

// State is the folder of leases.
func (p *Provider) State() string { return p.opts.State }

// Name implements sandbox.Provider.
func (p *Provider) Name() string { return "namespace" }

// Ready implements sandbox.Provider: a lease says as soon what is missing.
func (p *Provider) Ready(context.Context) error { return nil }

// Check implements sandbox.Provider.
func (p *Provider) Check(ctx context.Context) error { return sandbox.Try(ctx, p, sandbox.Policy{}) }

// Reap implements sandbox.Provider.
func (p *Provider) Reap(ctx context.Context) ([]string, error) {
	return hub.Reap(ctx, p.opts.State, func(ctx context.Context, _ string, rec hub.Record) error { return removeCgroups(ctx, rec.Cgroups) })
}

// prepare reads once what does not change between leases.
func (p *Provider) prepare() {
	p.once.Do(func() {
		p.cg = findHierarchies()
		if !p.root {
			p.cg = hierarchies{}
			p.ids, _ = findSubordinate()
		}
		p.etc, p.etcOK = hiddenEtc()
		if p.root {
			p.sealed, p.sealedErr = sealAgent(p.opts.Agent)
		}
		if p.opts.Notice == nil {
			return
		}
		if !p.root && p.ids == nil {
			p.opts.Notice("running as an ordinary user: machines have no CPU and memory limits, and uid 0 alone")
		} else if !p.root {
			p.opts.Notice("running as an ordinary user: machines have no CPU and memory limits")
		} else if !p.cg.limited() {
			p.opts.Notice("this host has no usable cgroup controllers: machines have no CPU and memory limits")
		}
	})
}

// Lease implements sandbox.Provider.
func (p *Provider) Lease(ctx context.Context, spec sandbox.Spec) (sandbox.Environment, error) {
	p.prepare()
	if err := errors.Join(p.etcOK, p.sealedErr); err != nil {
		return nil, &sandbox.Error{Code: sandbox.CodeLease, Err: err}
	}
	if err := p.checkSpec(spec); err != nil {
		return nil, err
	}
	l, rec, err := hub.NewLease(p.opts.State, hub.Record{Owner: spec.Owner, PID: os.Getpid(), Since: time.Now().UTC()}, p.cg.folders)
	if err != nil {
		return nil, err
	}
	e := &environment{provider: p, lease: l, cgroups: rec.Cgroups, spec: spec, ended: make(chan struct{})}
	if err := e.start(ctx); err != nil {
		e.Release(context.WithoutCancel(ctx))
		return nil, explain(err)
	}
	return e, nil
}

// hiddenEnv is the environment of hidden commands: nothing of bj's. The number
// of threads is given, since the runtime would otherwise keep the host's cgroup
// files open to find out.
func hiddenEnv() []string { return []string{fmt.Sprintf("GOMAXPROCS=%d", min(runtime.NumCPU(), 4))} }

// sealAgent copies the agent to a file without a name that can be executed and
// not read by those who are not this host's root. The kernel then counts the
// memory of a process that runs it as the host's, and lets root of a machine
// neither trace the agent nor take its descriptors (would_dump in fs/exec.c).
func sealAgent(path string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the agent: %w", err)
	}
	defer src.Close()
	fd, err := unix.MemfdCreate("bj", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("copying the agent: %w", err)
	}
	f := os.NewFile(uintptr(fd), "agent")
	if _, err := io.Copy(f, src); err != nil {
		f.Close()
		return nil, fmt.Errorf("copying the agent: %w", err)
	}
	if err := f.Chmod(0o111); err != nil {
		f.Close()
		return nil, fmt.Errorf("copying the agent: %w", err)
	}
	// A file that is open for writing cannot be executed.
	defer f.Close()
	ro, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("copying the agent: %w", err)
	}
	return ro, nil
}

// checkSpec refuses what this host cannot give.
func (p *Provider) checkSpec(spec sandbox.Spec) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("reading the host's memory: %w", err)
	}
	total := int64(info.Totalram) * int64(info.Unit)
	var sum int64
	for _, m := range spec.Machines {
		sum += m.Memory
		if err := p.checkImage(m); err != nil {
			return err
		}
		if !m.V4.Is4() || !m.V6.Is6() {
			return fmt.Errorf("leasing %s: it needs an IPv4 and an IPv6 address", m.Name)
		}
	}
	switch {
	case len(spec.Policy.Units) == 0:
	case !p.root:
		return &sandbox.Error{Code: sandbox.CodeLimits, Err: errors.New("a condition is for some units alone (only=), and an ordinary user has no cgroups by which units are told apart"), Hint: "run bj as root"}
	case p.cg.unified == "":
		return &sandbox.Error{Code: sandbox.CodeLimits, Err: errors.New("a condition is for some units alone (only=), and this host has no cgroup file system of version 2 that bj may write, by which units are told apart"), Hint: "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"}
	}
	if len(spec.Users) > 0 && !p.root && p.ids == nil {
		return &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("a step runs as %s, and an ordinary user's machines have uid 0 alone", spec.Users[0]),
			Hint: "run bj as root, or give this user subordinate ids: apt-get install uidmap, and usermod --add-subuids and --add-subgids"}
	}
	if sum > total {
		return &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("the machines ask for %d MiB of memory, this host has %d", sum>>20, total>>20), Hint: "ask for less memory, or run it on a larger host"}
	}
	return nil
}

// startGateway starts the gateway with control, its end of the channel whose
// other end is conn.
func (e *environment) startGateway(control *os.File, conn *net.UnixConn) error {
	cmd := exec.Command(e.provider.opts.Agent)
	cmd.Args = []string{"bj", gatewayCommand}
	cmd.Env = hiddenEnv()
	cmd.ExtraFiles = []*os.File{control, e.lease.File}
	if e.provider.sealed != nil {
		cmd.Args = append(cmd.Args, gatewayAgent)
		cmd.ExtraFiles = append(cmd.ExtraFiles, e.provider.sealed)
	}
	cmd.Stderr = &e.stderr
	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	ids := e.provider.ids
	switch {
	case e.provider.root:
	case ids != nil:
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.AmbientCaps = allCapabilities()
		cmd.Args = append(cmd.Args, gatewayWaits)
	default:
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	e.cmd = cmd
	started := make(chan error, 1)
	go func() {
		// The parent-death signal comes when the thread that started the process
		// ends, so this one must stay for as long as the gateway.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(e.ended)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting the gateway: %w", err)
	}
	if ids != nil && !e.provider.root {
		if err := ids.give(cmd.Process.Pid); err != nil {
			return err
		}
		if _, err := conn.Write([]byte{0}); err != nil {
			return fmt.Errorf("waking the gateway: %w", err)
		}
	}
	return nil
}

// explain adds to an error of leasing what mends it.
func explain(err error) error {
	var e *sandbox.Error
	if errors.As(err, &e) {
		return err
	}
	e = &sandbox.Error{Code: sandbox.CodeLease, Err: err}
	text := err.Error()
	switch {
	case strings.Contains(text, "installing the seccomp filter"):
		e.Hint = "run a kernel with seccomp filters (CONFIG_SECCOMP_FILTER), and bj where they may be installed"
	case errors.Is(err, syscall.ENOSPC) && !strings.Contains(text, "fork/exec"):
		e.Hint = "the disk is full: df -h says which; BJ_CACHE names another folder for tools and images"
	case strings.Contains(text, "starting the gateway") || strings.Contains(text, "operation not permitted") || strings.Contains(text, "permission denied") || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.ENOSYS),
		strings.Contains(text, "giving a cgroup") && errors.Is(err, syscall.EINVAL): // an id that is not mapped
		return denied(err)
	case strings.Contains(text, "mapping the ids of"):
		e.Hint = "images keep their owners by mapped ids, which the file system of the cache does not have, as in most containers: name a folder on another one (BJ_CACHE), such as a volume, or run bj on the host"
	case strings.Contains(text, "mounting memory over") && strings.Contains(text, "no such device"):
		e.Hint = "modprobe overlay; where there is no such module, run a kernel that has it (CONFIG_OVERLAY_FS)"
	case strings.Contains(text, "mounting memory over") && strings.Contains(text, "invalid argument"):
		e.Hint = mendOverlay(os.Geteuid() != 0)
	}
	return e
}

// mendOverlay says what lets this user lay memory over the host's folders.
func mendOverlay(ordinary bool) string {
	if below := mountedBelow(hostTops); below != "" && ordinary {
		return "an ordinary user can lay nothing over a large folder with a mount in it: umount " + below + ", or run bj as root"
	}
	return "run Linux 5.19 or later: older ones lay nothing over folders whose ids are mapped"
}

// mountedBelow returns a mount in one of the top-level folders, or "".
func mountedBelow(tops []string) string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		for _, top := range tops {
			if strings.HasPrefix(fields[4], "/"+top+"/") {
				return fields[4]
			}
		}
	}
	return ""
}

// denied adds to an error of making or using namespaces why that is, and what
// mends it.
func denied(err error) error {
	var e *sandbox.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	why, mend := whyDenied(err)
	if why != "" {
		err = fmt.Errorf("%s: %w", why, err)
	}
	return &sandbox.Error{Code: sandbox.CodeLease, Err: err, Hint: mend}
}

// whyDenied says why this user can make no namespaces, or has no rights there,
// where that ended with err, and what mends it.
func whyDenied(err error) (why, mend string) {
	read := func(path string) string {
		b, _ := os.ReadFile(path)
		return strings.TrimSpace(string(b))
	}
	limited := errors.Is(err, syscall.ENOSPC)
	for _, kind := range []string{"user", "pid", "net", "mnt", "ipc", "uts"} {
		if name := "max_" + kind + "_namespaces"; limited && read("/proc/sys/user/"+name) == "0" {
			return kind + " namespaces are off", "sysctl -w user." + name + "=15000"
		}
	}
	_, missing := os.Lstat("/proc/self/ns/user")
	root := os.Geteuid() == 0
	switch {
	case missing != nil:
		return "this kernel has no user namespaces", "run one that has them (CONFIG_USER_NS)"
	case limited:
		return "the kernel's limit of namespaces is reached", "sysctl -a -r ^user.max_ lists the limits: raise that of the kind that there are many of"
	case errors.Is(err, syscall.EAGAIN):
		return "the limit of this user's processes is reached", "ulimit -u unlimited"
	case !root && read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
		return "user namespaces are for root only here", "sysctl -w kernel.unprivileged_userns_clone=1, or run bj as root"
	case !root && read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		return "AppArmor keeps user namespaces from ordinary users", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run bj as root"
	case !root:
		return "", "an ordinary user needs user namespaces, which containers and chroots keep from it: run bj on the host, or as root"
	case strings.HasSuffix(read("/proc/self/uid_map"), " 1"):
		return "root is the only user that this user namespace has, as in Bazel's sandbox, and machines may not have the host's root", "run bj outside of it, or as an ordinary user"
	}
	return "", "root lacks a capability or a system call here, as in most containers: run bj on the host, or in a container with --privileged"
}

var _ sandbox.Provider = (*Provider)(nil)
