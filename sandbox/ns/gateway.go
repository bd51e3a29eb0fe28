package ns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// gateway is the process that owns an environment: the first process of a pid
// namespace in which all machines live, and whose network namespace is the
// hub. When it ends, for whatever reason, the kernel ends every machine, and
// with them every namespace, link, rule and mount. It cannot reach anything
// outside but by asking bj to dial.
type gateway struct {
	peer     *peer
	agent    int // descriptor of the file that machines run; 0 for the gateway's own
	canaries canaries

	mu       sync.Mutex
	hub      *hub
	machines []*machine
	seal     *sealer
}

// machine is one machine as its gateway sees it.
type machine struct {
	config machineConfig
	cmd    *exec.Cmd
	netns  *os.File
	ended  chan struct{}
}

// gone reports whether the machine has crashed or ended.
func (m *machine) gone() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
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
	if err := unix.CloseRange(uint(own)+1, math.MaxUint32, 0); err != nil {
		return fmt.Errorf("closing inherited files: %w", err)
	}
	for fd := 3; fd <= own; fd++ {
		unix.CloseOnExec(fd)
	}
	// A signal that a terminal sends to all is bj's to act on. Notify, rather
	// than Ignore, since what is ignored stays so in every child.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	if slices.Contains(args, gatewayWaits) {
		if err := awaitIDs(3); err != nil {
			return err
		}
	}
	conn, err := unixConn(os.NewFile(3, "bj"))
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
	g.peer = newPeer(conn, g.handle)
	err = g.peer.run(context.Background())
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (g *gateway) handle(ctx context.Context, method string, params json.RawMessage, fds []*os.File) (any, []*os.File, error) {
	if method != "setup" {
		defer closeAll(fds)
	}
	switch method {
	case "setup":
		return call(params, func(r setupRequest) (any, error) { return nil, g.setup(ctx, r, fds) })
	case "seal":
		return call(params, func(r sealRequest) (any, error) { return nil, g.applySeal(ctx, r.Policy) })
	case "expect":
		return call(params, func(r expectRequest) (any, error) { g.canaries.expect(r.Canaries); return nil, nil })
	case "flows":
		return call(params, func(struct{}) (any, error) { return g.flows() })
	case "rules":
		return call(params, func(struct{}) (any, error) { return g.rules() })
	case "witness":
		return call(params, func(struct{}) (any, error) { return g.witness() })
	case "crash":
		return call(params, func(r machineRequest) (any, error) { return nil, g.crash(ctx, r.Machine) })
	case "dial":
		var r dialRequest
		if err := json.Unmarshal(params, &r); err != nil {
			return nil, nil, err
		}
		f, err := g.dialIn(ctx, r)
		if err != nil {
			return nil, nil, err
		}
		return nil, []*os.File{f}, nil
	}
	return nil, nil, fmt.Errorf("the gateway knows no %q", method)
}

// call decodes the parameters of a request and answers it.
func call[P any](params json.RawMessage, f func(P) (any, error)) (any, []*os.File, error) {
	var p P
	if err := json.Unmarshal(params, &p); err != nil {
		return nil, nil, fmt.Errorf("decoding a request: %w", err)
	}
	result, err := f(p)
	return result, nil, err
}

// setup makes the hub and boots all machines, with every link down.
func (g *gateway) setup(ctx context.Context, r setupRequest, channels []*os.File) error {
	defer closeAll(channels)
	if len(channels) != len(r.Machines) {
		return fmt.Errorf("setting up: %d channels for %d machines", len(channels), len(r.Machines))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hub != nil {
		return errors.New("setting up: done already")
	}
	var group errgroup.Group
	machines := make([]*machine, len(r.Machines))
	hubMade := make(chan struct{}) // closed when g.hub is set, or cannot be
	for i, config := range r.Machines {
		group.Go(func() error {
			m, err := g.boot(config, r, channels[i], hubMade)
			if err != nil {
				return fmt.Errorf("starting %s: %w", config.Name, err)
			}
			machines[i] = m
			return nil
		})
	}
	hub, err := newHub()
	g.hub = hub
	close(hubMade)
	if werr := group.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	g.machines = machines
	return nil
}

// boot starts the first process of a machine and waits until its root stands.
func (g *gateway) boot(config machineConfig, r setupRequest, channel *os.File, hubMade <-chan struct{}) (*machine, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	conn, err := unixConn(ours)
	if err != nil {
		theirs.Close()
		return nil, err
	}
	defer conn.Close()
	m := &machine{config: config, ended: make(chan struct{})}
	m.cmd = exec.Command("/proc/self/exe")
	if g.agent != 0 {
		m.cmd.Path = fmt.Sprintf("/proc/self/fd/%d", g.agent)
	}
	m.cmd.Args = []string{"bj", machineCommand}
	m.cmd.Env = hiddenEnv()
	m.cmd.ExtraFiles = []*os.File{channel, theirs}
	if config.Events != "" {
		events, err := os.Open(config.Events)
		if err != nil {
			theirs.Close()
			return nil, fmt.Errorf("opening the memory limit's events: %w", err)
		}
		defer events.Close()
		m.cmd.ExtraFiles = append(m.cmd.ExtraFiles, events)
	}
	m.cmd.Stderr = os.Stderr
	var mapping []syscall.SysProcIDMap
	for _, part := range r.IDs {
		mapping = append(mapping, syscall.SysProcIDMap{ContainerID: int(part.Inside), HostID: int(part.First), Size: int(part.Count)})
	}
	many := len(mapping) > 1 || mapping[0].Size > 1
	m.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET,
		UidMappings:                mapping,
		GidMappings:                mapping,
		GidMappingsEnableSetgroups: many,
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: !many},
	}
	err = startIn(m.cmd, config)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	go func() {
		m.cmd.Wait()
		close(m.ended)
	}()
	network, user, err := receiveSpaces(conn)
	if err != nil {
		return nil, fmt.Errorf("receiving its namespaces: %w", err)
	}
	m.netns = network
	msg := bootMessage{Machine: config, Root: r.Root}
	t := trees{base: map[string]*os.File{}}
	defer func() {
		for _, f := range t.base {
			f.Close()
		}
		closeAll(t.layers)
		closeAll(t.binds)
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
	<-hubMade
	if g.hub == nil {
		return nil, errors.New("there is no hub")
	}
	if err := g.hub.attach(config, m.netns); err != nil {
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
// ids mapped to those of the machine.
func mapTrees(msg *bootMessage, t *trees, config machineConfig, user *os.File) error {
	for _, top := range baseTops {
		fi, err := os.Lstat("/" + top)
		if err != nil || !fi.IsDir() {
			continue
		}
		if t.base[top], err = cloneTree("/"+top, user); err != nil {
			return err
		}
		msg.Base = append(msg.Base, top)
	}
	for _, dir := range config.Layers {
		f, err := cloneTree(dir, user)
		if err != nil {
			return err
		}
		t.layers = append(t.layers, f)
	}
	for _, b := range config.Binds {
		f, err := cloneTree(filepath.Dir(b.Source), user)
		if err != nil {
			return err
		}
		t.binds = append(t.binds, f)
	}
	msg.Layers, msg.Binds = len(t.layers), len(t.binds)
	return nil
}

func (g *gateway) crash(ctx context.Context, index int) error {
	g.mu.Lock()
	if index < 0 || index >= len(g.machines) {
		g.mu.Unlock()
		return fmt.Errorf("crashing machine %d: there is none", index)
	}
	m, hub := g.machines[index], g.hub
	g.mu.Unlock()
	// The link first: a kernel that ends processes says farewell for them, and a
	// machine without power does not.
	if err := hub.cut(m.config.Index); err != nil {
		return fmt.Errorf("cutting %s off: %w", m.config.Name, err)
	}
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("crashing %s: %w", m.config.Name, err)
	}
	select {
	case <-m.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("crashing %s: %w", m.config.Name, ctx.Err())
	}
}

func (g *gateway) witness() (witnessAnswer, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hub == nil {
		return witnessAnswer{}, errors.New("reading the witness: nothing is set up")
	}
	n, err := g.hub.leaked()
	return witnessAnswer{Leaked: n}, err
}

// dialIn connects from the hub to a machine.
func (g *gateway) dialIn(ctx context.Context, r dialRequest) (*os.File, error) {
	source := hub4
	if r.To.Addr().Is6() {
		source = hub6
	}
	d := net.Dialer{}
	switch r.Network {
	case "tcp":
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	case "udp":
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	default:
		return nil, fmt.Errorf("dialling %s: a supplier answers tcp and udp only", r.Network)
	}
	c, err := d.DialContext(ctx, r.Network, r.To.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(interface{ File() (*os.File, error) }).File()
}

// dialOut asks bj for a connection to the outside.
func (g *gateway) dialOut(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	files, err := g.peer.call(ctx, "dial", dialRequest{Network: network, To: to}, nil)
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	if len(files) != 1 {
		return nil, errors.New("dialling out: bj sent no connection")
	}
	return net.FileConn(files[0])
}
