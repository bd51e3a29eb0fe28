package ns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/agent"
	"bj/sandbox/hub"
)

// What machines need of the host is looked for by using it, one thing after the
// other, each in namespaces like those of a gateway or a machine. A machine that
// cannot be leased says what came first; this says all.

// probeDeadline bounds each probe.
const probeDeadline = 30 * time.Second

// The arguments of probeCommand, which say what it tries.
const (
	probeHub     = "hub"     // what the gateway does, in namespaces like its own
	probeUsers   = "users"   // to have rights, in namespaces like a machine's
	probeMachine = "machine" // what a machine's first process does, in such ones
	probeWait    = "wait"    // nothing, until its input ends
)

// Parts says what came of using each thing of the host that machines need, or
// that recipes may ask for. Cache is the folder of images, whose files have
// owners that machines see.
func (p *Provider) Parts(ctx context.Context, cache string) []sandbox.Part {
	p.prepare()
	users := p.tryUsers(ctx)
	untried := []sandbox.Part{{Err: errors.New("it was not tried, without user namespaces")}}
	inHub, inMachine := untried, untried
	if users.Err == nil || p.root {
		inHub = p.probe(ctx, probeHub, p.gatewayFlags())
	}
	ids := sandbox.Part{Name: "ids", Text: "machines have users beside root", Err: untried[0].Err}
	if users.Err == nil {
		inMachine = p.tryMachine(ctx)
		ids.Text, ids.Err = p.tryIDs(ctx, cache)
	}
	return []sandbox.Part{
		users, pick(inHub, "links"), pick(inHub, "nftables"), pick(inHub, "relay"),
		pick(inMachine, "overlay"), pick(inMachine, "seccomp"), ids, p.tryLimits(), p.tryUnits(ctx),
	}
}

// pick returns the part of that name. Where there is none, there is an error
// instead, and machines can do without none of them.
func pick(parts []sandbox.Part, name string) sandbox.Part {
	if i := slices.IndexFunc(parts, func(p sandbox.Part) bool { return p.Name == name }); i >= 0 {
		return parts[i]
	}
	return sandbox.Part{Name: name, Err: parts[0].Err, Vital: true}
}

// tryLimits keeps something within a number of CPUs and a size of memory. A
// recipe can run without.
func (p *Provider) tryLimits() sandbox.Part {
	part := sandbox.Part{Name: "limits", Text: "machines have no more CPUs and memory than they ask for"}
	missing := func(text, hint string) sandbox.Part {
		return part.With(&sandbox.Error{Code: sandbox.CodeLimits, Err: errors.New(text), Hint: hint}, "")
	}
	switch {
	case !p.root:
		return missing("an ordinary user's machines have all of the host's", "run bj as root")
	case !p.cg.limited():
		return missing("there are no cgroup controllers cpu and memory that bj may use",
			"echo +cpu +memory >/sys/fs/cgroup/cgroup.subtree_control (cgroup 2), or mount -t cgroup -o cpu,memory cgroup DIR (cgroup 1)")
	}
	lease, rec, err := hub.NewLease(p.opts.State, hub.Record{Owner: "doctor", PID: os.Getpid(), Since: time.Now().UTC()}, p.cg.folders)
	if err != nil {
		return part.With(err, "")
	}
	_, _, err = p.cg.machine(lease.Name, sandbox.MachineSpec{Name: "probe", CPUs: 1, Memory: 64 << 20}, 0, nil)
	if err = errors.Join(err, removeCgroups(context.Background(), rec.Cgroups), lease.End()); err != nil {
		err = denied(err)
	}
	return part.With(err, "some were set")
}

// tryUnits leases a machine whose units the seal tells apart.
func (p *Provider) tryUnits(ctx context.Context) sandbox.Part {
	part := sandbox.Part{Name: "only=", Text: "conditions can be for some units alone"}
	return part.With(sandbox.Try(ctx, p, sandbox.Policy{Units: []string{"probe"}}), "a seal told one from all others")
}

// tryUsers makes a machine's namespaces, and uses the rights in them.
func (p *Provider) tryUsers(ctx context.Context) sandbox.Part {
	part := sandbox.Part{Name: "userns", Text: "machines are user namespaces", Vital: true}
	return part.With(pick(p.probe(ctx, probeUsers, machineFlags), part.Name).Err, "one was made")
}

// tryMachine has a process do what a machine's first one does.
func (p *Provider) tryMachine(ctx context.Context) []sandbox.Part {
	base, err := hostBase()
	if err == nil && len(base.Tops) == 0 {
		err = errors.New("reading the root: it has no folders")
	}
	if err != nil {
		return []sandbox.Part{{Err: err}}
	}
	if !p.root {
		return p.probe(ctx, probeMachine, machineFlags)
	}
	// Of the host's root the mount alone, as it is handed to machines.
	tree, err := cloneTree("/"+base.Tops[0], nil)
	if err != nil {
		return []sandbox.Part{{Err: denied(err)}}
	}
	defer tree.Close()
	return p.probe(ctx, probeMachine, machineFlags, tree)
}

// tryIDs says how many users a machine has.
func (p *Provider) tryIDs(ctx context.Context, cache string) (string, error) {
	if !p.root {
		return p.trySubordinate(ctx)
	}
	text := "machines have 65536 users of their own, and files keep their owners"
	for _, dir := range []string{"/", cache} {
		if err := p.tryMapping(ctx, dir); err != nil {
			e := &sandbox.Error{Code: sandbox.CodeLease, Err: err, Hint: "name a folder on another file system, such as ext4, xfs or a volume: BJ_CACHE=/srv/bj"}
			text = "files of images keep their owners"
			if dir == "/" {
				e.Hint, text = "run bj on the host rather than in a container, or give machines an image", "files of the host keep their owners"
			}
			return text, e
		}
	}
	return text, nil
}

// tryMapping maps the owners of files in dir to those of a user namespace.
func (p *Provider) tryMapping(ctx context.Context, dir string) error {
	return p.during(ctx, p.mapped(p.agent(ctx)), func(pid int) error {
		user, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
		if err != nil {
			return fmt.Errorf("opening a user namespace: %w", err)
		}
		defer user.Close()
		tree, err := cloneTree(dir, user)
		if err == nil {
			tree.Close()
		}
		return err
	})
}

// trySubordinate maps the subordinate ids of an ordinary user.
func (p *Provider) trySubordinate(ctx context.Context) (string, error) {
	text := "steps that run as other users than root"
	ids, err := findSubordinate()
	if err != nil {
		return text, err
	}
	cmd := p.agent(ctx)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, Pdeathsig: syscall.SIGKILL}
	if err := p.during(ctx, cmd, ids.give); err != nil {
		return text, &sandbox.Error{Code: sandbox.CodeLimits, Err: err, Hint: "apt-get install --reinstall uidmap: newuidmap and newgidmap must be set-uid root, on a file system without nosuid"}
	}
	return fmt.Sprintf("machines have %d users", ids.count()), nil
}

// machineFlags are the namespaces of a machine.
const machineFlags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET

// gatewayFlags are those of a gateway.
func (p *Provider) gatewayFlags() uintptr {
	flags := uintptr(syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS)
	if !p.root {
		flags |= syscall.CLONE_NEWUSER
	}
	return flags
}

// agent returns a command that is the agent, as machines run it: those of root
// could not read its folder.
func (p *Provider) agent(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.opts.Agent)
	if p.sealed != nil {
		cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{p.sealed}
	}
	return cmd
}

// mapped gives a command a user namespace with the ids of a machine: of an
// ordinary user its own alone.
func (p *Provider) mapped(cmd *exec.Cmd) *exec.Cmd {
	uid, gid, size := os.Geteuid(), os.Getegid(), 1
	if p.root {
		uid, size = int(idBase()), 65536
		gid = uid
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: size}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: size}}
	cmd.SysProcAttr.GidMappingsEnableSetgroups = p.root
	cmd.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: !p.root}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return cmd
}

// during runs f while a command waits.
func (p *Provider) during(ctx context.Context, cmd *exec.Cmd, f func(pid int) error) error {
	cmd.Args, cmd.Env = []string{"bj", probeCommand, probeWait}, hiddenEnv()
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	return onThread(func() error {
		if err := cmd.Start(); err != nil {
			return denied(fmt.Errorf("making a user namespace: %w", err))
		}
		err := f(cmd.Process.Pid)
		in.Close()
		return errors.Join(err, cmd.Wait())
	})
}

// onThread calls f on a thread that stays while it runs: the signal by which a
// child dies with its parent comes when the thread ends that started it.
func onThread(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return f()
}

// found is a part as it goes from one process to another.
type found struct {
	sandbox.Part
	Err, Hint string
}

// probe has a process of its own, in new namespaces, try what is asked for. Where
// that says nothing there is one part, with the error.
// Files are handed on, their numbers as arguments.
func (p *Provider) probe(ctx context.Context, what string, flags uintptr, files ...*os.File) []sandbox.Part {
	ctx, cancel := context.WithTimeout(ctx, probeDeadline)
	defer cancel()
	var out, stderr bytes.Buffer
	cmd := p.agent(ctx)
	cmd.Args, cmd.Env = []string{"bj", probeCommand, what}, hiddenEnv()
	for _, f := range files {
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		cmd.Args = append(cmd.Args, strconv.Itoa(2+len(cmd.ExtraFiles)))
	}
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if flags&syscall.CLONE_NEWUSER != 0 {
		p.mapped(cmd)
	}
	err := onThread(cmd.Run)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("trying it: %w", context.Cause(ctx))
	case errors.As(err, &exit):
		err = denied(fmt.Errorf("trying it: %w: %s", err, strings.TrimSpace(stderr.String())))
	case err != nil:
		err = denied(fmt.Errorf("making namespaces: %w", err))
	}
	var list []found
	if err == nil {
		if err = json.Unmarshal(out.Bytes(), &list); err != nil {
			err = fmt.Errorf("trying it: its process says %.80q", out.String())
		}
	}
	if err != nil || len(list) == 0 {
		return []sandbox.Part{{Err: err}}
	}
	var parts []sandbox.Part
	for _, f := range list {
		if f.Err != "" {
			f.Part.Err = &sandbox.Error{Code: sandbox.CodeLease, Err: errors.New(f.Err), Hint: f.Hint}
		}
		parts = append(parts, f.Part)
	}
	return parts
}

// probeMain tries what is asked for, in namespaces of its own, and writes what
// came of it.
func probeMain(args []string) error {
	var parts []sandbox.Part
	switch args[0] {
	case probeWait:
		var b [1]byte
		os.Stdin.Read(b[:])
		return nil
	case probeUsers:
		parts = []sandbox.Part{{Name: "userns", Err: denied(useRights())}}
	case probeHub:
		if err := useRights(); err != nil {
			return err
		}
		// As the gateway does: settings of the hub are its own process's.
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mounting the gateway's /proc: %w", err)
		}
		parts = hub.Probe(context.Background())
	case probeMachine:
		parts = []sandbox.Part{tryOverlay(args[1:]), trySeccomp()}
	}
	var list []found
	for _, p := range parts {
		f := found{Part: p}
		if p.Err != nil {
			f.Err = p.Err.Error()
			var e *sandbox.Error
			if errors.As(p.Err, &e) {
				f.Hint = e.Hint
			}
		}
		f.Part.Err = nil
		list = append(list, f)
	}
	return json.NewEncoder(os.Stdout).Encode(list)
}

// useRights does what only root may, in namespaces of its own.
func useRights() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("using rights in a user namespace: %w", err)
	}
	if err := unix.Sethostname([]byte("probe")); err != nil {
		return fmt.Errorf("using rights in a user namespace: %w", err)
	}
	return nil
}

// tryOverlay lays memory over a folder of the host, as roots of machines are
// made. A mount of it may come as a descriptor.
func tryOverlay(mounts []string) sandbox.Part {
	part := sandbox.Part{Name: "overlay", Text: "machines write to memory laid over read-only folders", Vital: true}
	err := overlay(mounts)
	switch {
	case errors.Is(err, unix.EINVAL):
		// Here everybody is root: who comes without a mount of the host's is not.
		err = &sandbox.Error{Code: sandbox.CodeLease, Err: err, Hint: mendOverlay(len(mounts) == 0)}
	case err != nil:
		err = explain(err)
	}
	return part.With(err, "some was")
}

func overlay(mounts []string) error {
	if err := useRights(); err != nil {
		return err
	}
	base, err := hostBase()
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", stage, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mounting memory for the root: %w", err)
	}
	for _, dir := range []string{"lower", "up", "scratch", "root"} {
		if err := os.Mkdir(filepath.Join(stage, dir), 0o755); err != nil {
			return fmt.Errorf("making a folder: %w", err)
		}
	}
	top := base.Tops[0]
	lower := "/" + top
	for _, arg := range mounts {
		fd, err := strconv.Atoi(arg)
		if err != nil {
			return err
		}
		lower = stage + "/lower"
		if err := moveMount(os.NewFile(uintptr(fd), top), lower); err != nil {
			return fmt.Errorf("mounting /%s of the host: %w", top, err)
		}
	}
	return mountOver(top, []string{lower}, stage+"/up", stage+"/scratch", stage+"/root")
}

// trySeccomp installs the filters under which a machine's programs run.
func trySeccomp() sandbox.Part {
	part := sandbox.Part{Name: "seccomp", Text: "it closes ways around the seal, and says which process was blocked", Vital: true}
	runtime.LockOSThread()
	listener, err := agent.Enter()
	switch {
	case err == nil && listener >= 0:
		part.Text += ": filters were installed"
	case err != nil:
		part.Err = explain(err)
	default:
		part.Vital = false
		part.Text = "it says which process was blocked"
		part.Err = &sandbox.Error{Code: sandbox.CodeLease, Err: errors.New("whoever started bj watches its calls already, or the kernel is older than 5.0"), Hint: "run bj outside of what watches it, such as a container runtime"}
	}
	return part
}
