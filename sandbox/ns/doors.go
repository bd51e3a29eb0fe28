package ns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/hub"
)

// doorLimit is how long a daemon of the host may take to let somebody in.
const doorLimit = 5 * time.Second

// door is where a daemon of the host is reached from inside one machine. The
// socket is made here and bound by the machine's first process, to a name that
// is the machine's own; so nothing of the host is mounted, nothing lies on disk,
// and when bj dies nobody listens any more.
type door struct {
	machine string
	units   string // where the cgroups of its units are, in the cgroup namespace
	path    string
	file    *os.File // of no use once it is served

	mu      sync.Mutex
	ways    []*way
	blocked []sandbox.Flow // who came while it was dark, or was not among those for whom it is open
	listen  net.Listener   // nil before the seal
	carried map[net.Conn]*way
}

// way is a condition that opens a door.
type way struct {
	sandbox.Socket
	uses sandbox.Use
	dark bool
}

// newDoors makes the sockets of one machine, whose units have their cgroups below
// a folder.
func newDoors(p sandbox.Policy, machine, units string) ([]*door, error) {
	var ds []*door
	for _, s := range p.Sockets {
		if !sandbox.Among(s.Machines, machine) {
			continue
		}
		w := &way{Socket: s, uses: sandbox.Use{Condition: s.Condition}}
		if i := slices.IndexFunc(ds, func(d *door) bool { return d.path == s.Path }); i >= 0 {
			ds[i].ways = append(ds[i].ways, w)
			continue
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			for _, d := range ds {
				d.shut()
			}
			return nil, fmt.Errorf("making a socket for %s: %w", s.Path, err)
		}
		ds = append(ds, &door{machine: machine, units: units, path: s.Path, file: os.NewFile(uintptr(fd), s.Path), ways: []*way{w}, carried: map[net.Conn]*way{}})
	}
	return ds, nil
}

// place says that those may come who may come to the daemon on the host: all, or
// root alone, since other accounts are not the same here.
func (d *door) place() place {
	info, err := os.Stat(d.path)
	if err == nil && info.Mode().Perm()&0o002 != 0 {
		return place{d.path, 0o666}
	}
	return place{d.path, 0o600}
}

// hang binds a door's socket to its path. It is called in the machine.
func hang(f *os.File, at place) error {
	path := at.Path
	defer f.Close()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the folder of the socket %s: %w", path, err)
	}
	if err := unix.Bind(int(f.Fd()), &unix.SockaddrUnix{Name: path}); err != nil {
		return fmt.Errorf("placing the socket %s: %w", path, err)
	}
	if err := os.Chmod(path, at.Mode); err != nil {
		return fmt.Errorf("placing the socket %s: %w", path, err)
	}
	if err := unix.Listen(int(f.Fd()), 128); err != nil {
		return fmt.Errorf("listening on the socket %s: %w", path, err)
	}
	return nil
}

// open serves the door, if it is not yet.
func (d *door) open() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listen != nil {
		return nil
	}
	l, err := net.FileListener(d.file)
	if err != nil {
		return fmt.Errorf("serving the socket %s: %w", d.path, err)
	}
	d.file.Close()
	d.listen = l
	go func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(10 * time.Millisecond) // out of descriptors, say
				continue
			}
			go d.carry(conn.(*net.UnixConn))
		}
	}()
	return nil
}

// find returns the way that is open for one who comes, or nil, and notes that.
func (d *door) find(who *sandbox.Origin) *way {
	d.mu.Lock()
	defer d.mu.Unlock()
	unit := ""
	if who != nil {
		unit = who.Unit
	}
	for _, w := range d.ways {
		if !w.dark && sandbox.Among(w.Units, unit) {
			return w
		}
	}
	now := time.Now()
	f := sandbox.Flow{Machine: d.machine, Protocol: "unix", Path: d.path, Unit: unit, Origin: who, Count: 1, First: now, Last: now}
	for i := range d.blocked {
		if b := &d.blocked[i]; b.Unit == unit && sameProgram(b.Origin, who) {
			b.Count, b.Last, b.Origin = b.Count+1, now, who
			return nil
		}
	}
	if len(d.blocked) < maxBlocked {
		d.blocked = append(d.blocked, f)
	}
	return nil
}

// maxBlocked bounds the programs that a door tells apart.
const maxBlocked = 64

func sameProgram(a, b *sandbox.Origin) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Exe == b.Exe && slices.Equal(a.Argv, b.Argv)
}

// enter notes a connection of a way, and reports whether that is open still.
func (d *door) enter(w *way, c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.dark {
		return false
	}
	d.carried[c] = w
	return true
}

// carry connects one who came to the daemon.
func (d *door) carry(in *net.UnixConn) {
	defer in.Close()
	w := d.find(d.who(in))
	if w == nil || !d.enter(w, in) {
		return
	}
	defer d.leave(in)
	ctx, cancel := context.WithTimeout(context.Background(), doorLimit)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", d.path)
	if err != nil {
		return
	}
	out := conn.(*net.UnixConn)
	defer out.Close()
	if !d.enter(w, out) {
		return
	}
	defer d.leave(out)
	d.mu.Lock()
	w.uses.Count++
	d.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range [][2]*net.UnixConn{{out, in}, {in, out}} {
		both.Go(func() {
			n, _ := io.Copy(way[0], way[1])
			way[0].CloseWrite()
			d.mu.Lock()
			w.uses.Bytes += n
			d.mu.Unlock()
		})
	}
	both.Wait()
}

func (d *door) leave(c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.carried, c)
}

// darken ends what ways have let in, and lets nobody in there any more if dark.
func (d *door) darken(dark bool, ways ...*way) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range ways {
		w.dark = w.dark || dark
	}
	for c, w := range d.carried {
		if slices.Contains(ways, w) {
			c.Close()
		}
	}
}

// shut takes the door away.
func (d *door) shut() {
	d.darken(true, d.ways...)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listen != nil {
		d.listen.Close()
	}
	d.file.Close()
}

// Seal implements sandbox.Environment.
func (e *environment) Seal(ctx context.Context, p sandbox.Policy) error {
	var names []string
	for _, m := range e.spec.Machines {
		names = append(names, m.Name)
	}
	open := p.Narrowed(names)
	cuts := !p.Darkens(e.sealedAs)
	for _, d := range e.doors {
		for _, w := range d.ways {
			kept := slices.ContainsFunc(open.Sockets, func(s sandbox.Socket) bool {
				return s.Path == d.path && s.Condition == w.Condition && sandbox.Among(s.Machines, d.machine)
			})
			if !kept || cuts {
				d.darken(!kept, w)
			}
		}
	}
	e.sealedAs = p
	if err := e.Client.Seal(ctx, p); err != nil {
		return err
	}
	for _, d := range e.doors {
		if err := d.open(); err != nil {
			return sandbox.AsError(err, sandbox.CodeLease)
		}
	}
	return nil
}

// Blocked implements sandbox.Environment.
func (e *environment) Blocked(ctx context.Context) ([]sandbox.Flow, error) {
	flows, err := e.Client.Blocked(ctx)
	for _, d := range e.doors {
		d.mu.Lock()
		flows = append(flows, d.blocked...)
		d.mu.Unlock()
	}
	slices.SortStableFunc(flows, func(a, b sandbox.Flow) int { return a.First.Compare(b.First) })
	return flows, err
}

// Used implements sandbox.Environment.
func (e *environment) Used(ctx context.Context) ([]sandbox.Use, error) {
	uses, err := e.Client.Used(ctx)
	for _, d := range e.doors {
		d.mu.Lock()
		for _, w := range d.ways {
			uses = hub.AddUses(uses, []sandbox.Use{w.uses})
		}
		d.mu.Unlock()
	}
	return uses, err
}
