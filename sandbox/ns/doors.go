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
	machine   string
	condition int
	path      string
	file      *os.File // of no use once it is served

	mu      sync.Mutex
	uses    sandbox.Use
	blocked sandbox.Flow // who came while it was dark
	listen  net.Listener // nil before the seal
	dark    bool
	carried map[net.Conn]bool
}

// newDoors makes the sockets of one machine.
func newDoors(p sandbox.Policy, machine string) ([]*door, error) {
	var ds []*door
	for _, s := range p.Sockets {
		if len(s.Machines) > 0 && !slices.Contains(s.Machines, machine) || slices.ContainsFunc(ds, func(d *door) bool { return d.path == s.Path }) {
			continue
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			for _, d := range ds {
				d.shut()
			}
			return nil, fmt.Errorf("making a socket for %s: %w", s.Path, err)
		}
		ds = append(ds, &door{machine: machine, condition: s.Condition, path: s.Path, file: os.NewFile(uintptr(fd), s.Path),
			uses: sandbox.Use{Condition: s.Condition}, carried: map[net.Conn]bool{},
			blocked: sandbox.Flow{Machine: machine, Protocol: "unix", Path: s.Path}})
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

// enter notes one who came, and reports whether the door is open for them.
func (d *door) enter(conns ...net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dark {
		now := time.Now()
		if d.blocked.Count++; d.blocked.Count == 1 {
			d.blocked.First = now
		}
		d.blocked.Last = now
		return false
	}
	for _, c := range conns {
		d.carried[c] = true
	}
	return true
}

// carry connects one who came to the daemon.
func (d *door) carry(in *net.UnixConn) {
	defer in.Close()
	if !d.enter(in) {
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
	if !d.enter(out) {
		return
	}
	defer d.leave(out)
	d.mu.Lock()
	d.uses.Count++
	d.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range [][2]*net.UnixConn{{out, in}, {in, out}} {
		both.Go(func() {
			n, _ := io.Copy(way[0], way[1])
			way[0].CloseWrite()
			d.mu.Lock()
			d.uses.Bytes += n
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

// darken lets nobody in any more, if dark, and ends what was let in.
func (d *door) darken(dark bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dark = d.dark || dark
	for c := range d.carried {
		c.Close()
	}
}

// shut takes the door away.
func (d *door) shut() {
	d.darken(true)
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
		kept := slices.ContainsFunc(open.Sockets, func(s sandbox.Socket) bool {
			return s.Path == d.path && s.Condition == d.condition && (len(s.Machines) == 0 || slices.Contains(s.Machines, d.machine))
		})
		if !kept || cuts {
			d.darken(!kept)
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
		if d.blocked.Count > 0 {
			flows = append(flows, d.blocked)
		}
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
		uses = hub.AddUses(uses, []sandbox.Use{d.uses})
		d.mu.Unlock()
	}
	return uses, err
}
