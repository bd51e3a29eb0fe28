package ns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bj/sandbox/agent"
	"bj/sandbox/hub"
)

// gateway is the process that owns an environment: the first process of a pid
// namespace in which all machines live, and whose network namespace is the
// hub. When it ends, for whatever reason, the kernel ends every machine, and
// with them every namespace, link, rule and mount.
type gateway struct {
	agent int // descriptor of the file that machines run; 0 for the gateway's own
}

// agentFile is the descriptor of the agent that machines run, where that is not
// the gateway's own program, as its argument gatewayAgent says.
const (
	agentFile    = 5
	gatewayAgent = "agent"
)

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// gatewayMain serves bj on descriptor 3 until it is closed. Descriptor 4 is
// the lease's lock, held for as long as this process lives.
func gatewayMain(args []string) error {
	own := agentFile - 1
	if slices.Contains(args, gatewayAgent) {
		own = agentFile
	}
	// What bj had open itself, by inheritance, goes no further.
	if err := hub.CloseInherited(own); err != nil {
		return fmt.Errorf("closing inherited files: %w", err)
	}
	for fd := 3; fd <= own; fd++ {
		unix.CloseOnExec(fd)
	}
	// A signal that a terminal sends to all is bj's to act on. Notify, rather
	// than Ignore, since what is ignored stays so in every child.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	// While this is the host's root, if it is: machines could not raise a limit.
	if err := agent.LimitCores(); err != nil {
		return err
	}
	if slices.Contains(args, gatewayWaits) {
		if err := awaitIDs(3); err != nil {
			return err
		}
	}
	conn, err := hub.UnixConn(os.NewFile(3, "bj"))
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	// The host's /proc knows this process's children by other numbers.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting the gateway's /proc: %w", err)
	}
	g := &gateway{}
	if own == agentFile {
		// Away from the numbers that a machine's own descriptors get.
		if g.agent, err = unix.FcntlInt(agentFile, unix.F_DUPFD_CLOEXEC, 64); err != nil {
			return fmt.Errorf("keeping the agent: %w", err)
		}
	}
	err = hub.NewGateway(conn, g.setup).Run(context.Background())
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// setup makes the hub and boots all machines, with every link down.
func (g *gateway) setup(ctx context.Context, gw *hub.Gateway, params json.RawMessage, channels []*os.File) error {
	defer hub.CloseAll(channels)
	var r setupRequest
	if err := json.Unmarshal(params, &r); err != nil {
		return fmt.Errorf("decoding a request: %w", err)
	}
	want := len(r.Machines)
	for _, m := range r.Machines {
		want += len(m.Doors)
	}
	if len(channels) != want {
		return fmt.Errorf("setting up: %d descriptors instead of %d, for %d machines", len(channels), want, len(r.Machines))
	}
	doors := channels[len(r.Machines):]
	var group errgroup.Group
	var net *hub.Net
	machines := make([]*hub.Machine, len(r.Machines))
	made := make(chan struct{}) // closed when net is set, or cannot be
	for i, config := range r.Machines {
		own := doors[:len(config.Doors)]
		doors = doors[len(config.Doors):]
		group.Go(func() error {
			m, err := g.boot(config, r, channels[i], own, func() *hub.Net { <-made; return net })
			if err != nil {
				return fmt.Errorf("starting %s: %w", config.Name, err)
			}
			machines[i] = m
			return nil
		})
	}
	net, err := hub.NewNet()
	close(made)
	if werr := group.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	return gw.Adopt(net, machines)
}

// boot starts the first process of a machine and waits until its root stands.
func (g *gateway) boot(config machineConfig, r setupRequest, channel *os.File, doors []*os.File, net func() *hub.Net) (*hub.Machine, error) {
	ours, theirs, err := hub.SocketPair()
	if err != nil {
		return nil, err
	}
	conn, err := hub.UnixConn(ours)
	if err != nil {
		theirs.Close()
		return nil, err
	}
	defer conn.Close()
	cmd := exec.Command("/proc/self/exe")
	if g.agent != 0 {
		cmd.Path = fmt.Sprintf("/proc/self/fd/%d", g.agent)
	}
	cmd.Args = []string{"bj", machineCommand}
	cmd.Env = hiddenEnv()
	cmd.ExtraFiles = []*os.File{channel, theirs}
	if config.Events != "" {
		events, err := os.Open(config.Events)
		if err != nil {
			theirs.Close()
			return nil, fmt.Errorf("opening the memory limit's events: %w", err)
		}
		defer events.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, events)
	}
	cmd.Stderr = os.Stderr
	var mapping []syscall.SysProcIDMap
	for _, part := range r.IDs {
		mapping = append(mapping, syscall.SysProcIDMap{ContainerID: int(part.Inside), HostID: int(part.First), Size: int(part.Count)})
	}
	many := len(mapping) > 1 || mapping[0].Size > 1
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET,
		UidMappings:                mapping,
		GidMappings:                mapping,
		GidMappingsEnableSetgroups: many,
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: !many},
	}
	err = startIn(cmd, config)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	network, user, err := receiveSpaces(conn)
	if err != nil {
		return nil, fmt.Errorf("receiving its namespaces: %w", err)
	}
	m := &hub.Machine{Name: config.Name, Index: config.Index, V4: config.V4, V6: config.V6, MAC: config.MAC, NetNS: network, Cgroup: config.Units, CgroupAt: config.UnitsAt, Ended: ended, Kill: cmd.Process.Kill}
	msg := bootMessage{Machine: config, Root: r.Root}
	t := trees{base: map[string]*os.File{}, doors: doors}
	defer func() {
		for _, f := range t.base {
			f.Close()
		}
		hub.CloseAll(t.layers)
		hub.CloseAll(t.binds)
		if t.units != nil {
			t.units.Close()
		}
		user.Close()
	}()
	if r.Root.Idmap {
		if err := mapTrees(&msg, &t, config, user); err != nil {
			return nil, err
		}
	}
	if config.Units != "" {
		if t.units, err = cloneTree(config.Units, nil); err != nil {
			return nil, err
		}
		msg.Units = true
	}
	if err := sendBoot(conn, msg, t); err != nil {
		return nil, err
	}
	// While it builds its root.
	n := net()
	if n == nil {
		return nil, errors.New("there is no hub")
	}
	if err := n.Attach(m); err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("waiting for its root: %w", err)
	}
	if string(answer) != "ok" {
		if len(answer) == 0 {
			return nil, errors.New("its first process ended early")
		}
		return nil, errors.New(string(answer))
	}
	return m, nil
}

// startIn starts a command in a machine's cgroups. Moving a process there costs
// a grace period of the kernel's (cgroup_threadgroup_rwsem), some milliseconds;
// being born there, or moving one's own thread, does not.
func startIn(cmd *exec.Cmd, config machineConfig) error {
	if config.Units != "" {
		dir, err := os.Open(config.Units)
		if err != nil {
			return fmt.Errorf("opening the machine's cgroup: %w", err)
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: this thread ends, as it is in the machine's cgroups
		for _, dir := range config.Cgroups {
			if dir == config.Units {
				continue
			}
			if err := writeCgroup(dir, "tasks", "0"); err != nil {
				started <- err
				return
			}
		}
		started <- cmd.Start()
	}()
	return <-started
}

// mapTrees clones the mounts that a machine's root is made of, with the host's
// ids mapped to those of the machine. An image is there with the owners that it
// has, or not at all.
func mapTrees(msg *bootMessage, t *trees, config machineConfig, user *os.File) error {
	base := cloneTree
	if config.Base.host() {
		base = cloneShared
	}
	for _, top := range config.Base.Tops {
		var err error
		if t.base[top], err = base(filepath.Join(config.Base.Dir, top), user); err != nil {
			return err
		}
		msg.Base = append(msg.Base, top)
	}
	for _, dir := range config.Layers {
		f, err := cloneShared(dir, user)
		if err != nil {
			return err
		}
		t.layers = append(t.layers, f)
	}
	for _, b := range config.Binds {
		f, err := cloneShared(filepath.Dir(b.Source), user)
		if err != nil {
			return err
		}
		t.binds = append(t.binds, f)
	}
	msg.Layers, msg.Binds = len(t.layers), len(t.binds)
	return nil
}
