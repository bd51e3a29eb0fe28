package ns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"bj/sandbox"
	"bj/sandbox/agent"

	"bj/sandbox/hub"
)

// releaseDeadline bounds how long destroying an environment may take.
const releaseDeadline = 10 * time.Second

// environment is bj's side of a leased environment.
type environment struct {
	*hub.Client
	provider *Provider
	spec     sandbox.Spec
	lease    *hub.Lease
	cgroups  []string
	cmd      *exec.Cmd
	machines []*guest
	stderr   hub.Output
	expire   *time.Timer

	roots []string // what each machine runs on, for people
	holds []func() // let go of images

	doors    []*door
	sealedAs sandbox.Policy // by the last call of Seal

	ended chan struct{} // closed when the gateway process is gone

	release sync.Once
	relErr  error
}

// start makes everything up to the point where Seal can be called.
func (e *environment) start(ctx context.Context) error {
	shadow, err := shadowFile()
	if err != nil {
		return err
	}
	bases, err := e.bases(ctx)
	if err != nil {
		return err
	}
	req := setupRequest{Root: rootConfig{
		Hosts:  hub.HostsFile(e.spec.Machines),
		Resolv: fmt.Sprintf("nameserver %s\noptions timeout:2 attempts:1\n", hub.Addr4),
		Shadow: shadow,
		Hidden: e.provider.etc,
		Idmap:  e.provider.root,
	}}
	req.IDs = []idRange{{Count: 1}}
	switch {
	case e.provider.root:
		req.IDs = []idRange{{First: idBase(), Count: 65536}}
	case e.provider.ids != nil:
		req.IDs = append(req.IDs, idRange{Inside: 1, First: 1, Count: e.provider.ids.count() - 1})
	}
	var channels, doors []*os.File
	defer func() { hub.CloseAll(channels) }()
	var conns []net.Conn
	contents := make([][]sandbox.File, len(e.spec.Machines))
	for i, m := range e.spec.Machines {
		config := machineConfig{Name: m.Name, Index: i, V4: m.V4, V6: m.V6, MAC: hub.HardwareAddr(e.lease.Name, i), Memory: m.Memory, Disk: m.Disk, Base: bases[i]}
		if config.Cgroups, config.Units, err = e.provider.cg.machine(e.lease.Name, m, req.IDs[0].First, e.spec.Policy.Units); err != nil {
			return err
		}
		config.UnitsAt = filepath.Join(e.provider.cg.at, e.lease.Name, m.Name)
		config.Apart = len(e.spec.Policy.Units) > 0
		config.Events = e.provider.cg.oomEvents(e.lease.Name, m.Name)
		for _, f := range m.Files {
			switch {
			case f.Tree:
				config.Layers = append(config.Layers, f.Source)
			case f.Source != "" && f.ReadOnly:
				config.Binds = append(config.Binds, bind{Source: f.Source, Path: f.Path})
			case f.Source != "":
				data, err := os.ReadFile(f.Source)
				if err != nil {
					return fmt.Errorf("staging %s: %w", f.Path, err)
				}
				f.Content, f.Source = data, ""
				contents[i] = append(contents[i], f)
			default:
				contents[i] = append(contents[i], f)
			}
		}
		made, err := newDoors(e.spec.Policy, m.Name, config.UnitsAt)
		if err != nil {
			return err
		}
		e.doors = append(e.doors, made...)
		for _, d := range made {
			config.Doors = append(config.Doors, d.place())
			doors = append(doors, d.file)
		}
		ours, theirs, err := hub.SocketPair()
		if err != nil {
			return err
		}
		channels = append(channels, theirs)
		conn, err := hub.UnixConn(ours)
		if err != nil {
			return err
		}
		defer func() {
			if e.machines[i].client == nil {
				conn.Close()
			}
		}()
		conns = append(conns, conn)
		e.machines = append(e.machines, &guest{env: e, index: i, name: m.Name, events: config.Events})
		req.Machines = append(req.Machines, config)
	}
	ours, theirs, err := hub.SocketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	conn, err := hub.UnixConn(ours)
	if err != nil {
		return err
	}
	e.Client = hub.NewClient(e.spec, conn)
	if err := e.startGateway(theirs, conn); err != nil {
		conn.Close()
		return err
	}
	theirs.Close()
	go e.Run()
	if _, err := e.Peer.Call(ctx, "setup", req, nil, slices.Concat(channels, doors)...); err != nil {
		return e.withWords(err)
	}
	hub.CloseAll(channels)
	channels = nil
	for i, m := range e.machines {
		if m.client, err = agent.NewClient(ctx, conns[i]); err != nil {
			return e.withWords(fmt.Errorf("waiting for the agent of %s: %w", m.name, err))
		}
		e.Agents = append(e.Agents, m.client)
		for _, f := range contents[i] {
			if err := m.client.Put(ctx, f); err != nil {
				if f.Absent {
					return &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("staging %s: %w", m.name, err), Hint: "an ordinary user's machines cannot hide files of the host's root: run bj as root, or give the machine an image"}
				}
				return fmt.Errorf("staging %s on %s: %w", f.Path, m.name, err)
			}
		}
	}
	if !e.spec.Deadline.IsZero() {
		e.expire = time.AfterFunc(time.Until(e.spec.Deadline), func() { e.Release(context.Background()) })
	}
	return nil
}

// withWords adds to err what a hidden process has said before it ended: that is
// in the pipe already, and a moment from here.
func (e *environment) withWords(err error) error {
	for deadline := time.Now().Add(200 * time.Millisecond); e.stderr.String() == "" && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	s := strings.TrimPrefix(e.stderr.String(), "bj: error: ")
	if s == "" || strings.Contains(err.Error(), s) {
		return err
	}
	return fmt.Errorf("%w: %s", err, s)
}

// idBase returns the first of 65,536 ids of the host that no account has: a
// range of its own for each environment, far above those of users and below
// 2^31, where signed ids end.
func idBase() uint32 {
	var b [4]byte
	rand.Read(b[:])
	const ranges = 10_000
	return 1<<30 + binary.BigEndian.Uint32(b[:])%ranges*65536
}

func (e *environment) Name() string { return e.lease.Name }
func (e *environment) Root() string { return e.rootNames() }

func (e *environment) Free() []string {
	return []string{"names: hosts file", "clock: the host's", "entropy: the host's", "kernel: the host's", "programs: " + e.rootNames()}
}

func (e *environment) Machines() []sandbox.Machine {
	ms := make([]sandbox.Machine, len(e.machines))
	for i, m := range e.machines {
		ms[i] = m
	}
	return ms
}

// Release kills the gateway; the kernel then ends all that lives below it
// before the gateway's end is reported. What remains is removed here.
func (e *environment) Release(ctx context.Context) error {
	e.release.Do(func() {
		if e.Client != nil {
			e.End() // from here on its end is no loss
		}
		if e.expire != nil {
			e.expire.Stop()
		}
		ctx, cancel := context.WithTimeout(ctx, releaseDeadline)
		defer cancel()
		var errs []error
		if e.cmd != nil && e.cmd.Process != nil {
			if err := e.cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
				errs = append(errs, fmt.Errorf("ending the gateway: %w", err))
			}
			select {
			case <-e.ended:
			case <-ctx.Done():
				errs = append(errs, fmt.Errorf("waiting for the gateway to end: %w", ctx.Err()))
			}
		}
		for _, m := range e.machines {
			if m.client != nil {
				// The agent is dead by now: this only closes the stream.
				m.client.Close(ctx)
			}
		}
		for _, d := range e.doors {
			d.shut()
		}
		for _, letGo := range e.holds {
			letGo()
		}
		if err := removeCgroups(ctx, e.cgroups); err != nil {
			errs = append(errs, err)
		}
		if len(errs) == 0 {
			if err := e.lease.End(); err != nil {
				errs = append(errs, fmt.Errorf("ending the lease: %w", err))
			}
		} else {
			// The record stays, unlocked, for a reaper.
			e.lease.File.Close()
		}
		e.relErr = errors.Join(errs...)
	})
	return e.relErr
}

// guest is one machine: the agent's client, and what only a provider can do.
type guest struct {
	env    *environment
	index  int
	name   string
	client *agent.Client
	events string // file that counts what its memory limit has ended; "": none
}

func (g *guest) Name() string          { return g.name }
func (g *guest) Lost() <-chan struct{} { return g.client.Lost() }

// Why implements sandbox.Machine. When the memory limit has ended every command
// and the files in memory take all of it still, the kernel ends the agent.
func (g *guest) Why() string {
	if g.events == "" {
		return ""
	}
	b, err := os.ReadFile(g.events)
	if n := agent.OOMKills(b); err == nil && n > 0 {
		return fmt.Sprintf("it ran out of its %d MiB of memory, to which the files in its /dev/shm and on its disk count, and the kernel ended %d of its processes", g.env.spec.Machines[g.index].Memory>>20, n)
	}
	return ""
}

func (g *guest) Start(ctx context.Context, c sandbox.Command, output func(sandbox.Stream, []byte)) (sandbox.Process, error) {
	if !g.env.Sealed() {
		return nil, fmt.Errorf("starting a command on %s: it is not sealed", g.name)
	}
	return g.client.Start(ctx, c, output)
}

func (g *guest) KillUnit(ctx context.Context, unit string) (int, error) {
	return g.client.KillUnit(ctx, unit)
}

func (g *guest) Crash(ctx context.Context) error {
	if _, err := g.env.Peer.Call(ctx, "crash", hub.MachineRequest{Machine: g.index}, nil); err != nil {
		return err
	}
	select {
	case <-g.client.Lost():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to be gone: %w", g.name, ctx.Err())
	}
}

var _ sandbox.Environment = (*environment)(nil)
