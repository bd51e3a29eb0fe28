package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// A command is one that the guest has started and whose output is open.
type command struct {
	id     uint32
	group  group
	credit *flow
	out    *frameWriter

	in       *os.File // its input, or its terminal; nil if it has none
	terminal bool
}

// start runs a command and replies. It is called by the reading goroutine, so
// that a kill which follows finds the command.
func (g *guest) start(id uint32, m start) error {
	g.mu.Lock()
	_, taken := g.commands[id]
	g.mu.Unlock()
	if taken {
		return fmt.Errorf("%w: command %d was started already", errFrame, id)
	}
	c := &command{id: id, group: group{unit: m.Unit, name: id}, credit: newFlow(window), out: g.out}
	pid, err := g.launch(c, m)
	if err != nil {
		return g.out.send(kindReply, id, reply{Error: err.Error(), Command: errors.Is(err, sandbox.ErrCommand)})
	}
	return g.out.send(kindReply, id, reply{PID: pid})
}

// launch forks m as c, and leaves its output and end to goroutines.
func (g *guest) launch(c *command, m start) (int, error) {
	im, closeFiles, err := g.image(c, m)
	if err != nil {
		return 0, err
	}
	pipes, err := newPipes(&im, m)
	if err != nil {
		closeFiles()
		return 0, err
	}
	c.in, c.terminal = pipes.in, m.Terminal != nil
	oom := g.oomKills()
	ended := make(chan unix.WaitStatus, 1)
	pid, err := g.spawner.start(im, ended)
	closeFiles()
	pipes.closeTheirs()
	if err != nil {
		pipes.closeOurs()
		g.forget(c)
		return 0, err
	}
	g.mu.Lock()
	g.commands[c.id] = c
	g.groups[c.group] = false
	g.mu.Unlock()

	outs := []*pump{newPump(c, kindStdout, pipes.readers[0])}
	if len(pipes.readers) > 1 {
		outs = append(outs, newPump(c, kindStderr, pipes.readers[1]))
	}
	for _, p := range outs {
		g.running.Go(p.run)
	}
	g.running.Go(func() {
		ws := <-ended
		if c.terminal {
			select {
			case <-outs[0].closed:
			case <-time.After(hangupDeadline):
			}
		}
		for _, p := range outs {
			p.flush()
		}
		for _, p := range outs {
			<-p.flushed
		}
		g.out.send(kindExit, c.id, g.exit(ws, oom))
		for _, p := range outs {
			<-p.closed
		}
		if c.in != nil {
			c.in.Close()
		}
		g.out.send(kindEnd, c.id, nil)
		g.forget(c)
	})
	return pid, nil
}

// image says how to run m. The files that it needs are closed by the second
// result, once the command has them.
func (g *guest) image(c *command, m start) (image, func(), error) {
	u, err := lookup(m.User)
	if err != nil {
		return image{}, nil, fmt.Errorf("%w: %w", sandbox.ErrCommand, err)
	}
	im := image{
		env:   environment(u, m.Env),
		dir:   u.dir(),
		cred:  u.credential(),
		group: c.group,
	}
	for _, a := range m.Argv {
		im.argv = append(im.argv, string(a))
	}
	var files []*os.File
	closeFiles := func() {
		for _, f := range files {
			f.Close()
		}
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return image{}, nil, fmt.Errorf("opening the input: %w", err)
	}
	files = append(files, null)
	im.files = []uintptr{null.Fd(), 0, 0} // 1 and 2 are set with the pipes
	if len(im.argv) > 0 {
		if im.argv[0], err = lookPath(im.argv[0], im.env); err != nil {
			closeFiles()
			return image{}, nil, err
		}
		return im, closeFiles, nil
	}
	script, err := scriptFile(m.Script)
	if err != nil {
		closeFiles()
		return image{}, nil, err
	}
	files = append(files, script)
	im.files = append(im.files, script.Fd())
	im.argv = slices.Clone(scriptArgs)
	return im, closeFiles, nil
}

// scriptArgs is how a script is run.
var scriptArgs = []string{"/bin/sh", "-e", "-c", ". /proc/self/fd/3", "sh"}

// scriptFile puts a script where /bin/sh can read it: a file without a name,
// as descriptor 3. An argument would be limited to 128 KiB, and would make
// `pkill -f WORD` find the very shell that runs it. The shell reads it through
// a descriptor of its own, so the first thing that it does is to close this
// one; the line stays the first, so that line numbers are right.
func scriptFile(script []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("script", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a file for the script: %w", err)
	}
	f := os.NewFile(uintptr(fd), "script")
	_, err = f.Write(append([]byte("exec 3<&-; "), script...))
	if err == nil {
		err = f.Chmod(0o444) // whatever user the shell is
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("writing the script: %w", err)
	}
	return f, nil
}

// forget drops a command whose output has ended, and the groups of which
// nothing lives any more.
func (g *guest) forget(c *command) {
	c.credit.close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.commands, c.id)
	g.groups[c.group] = true
	var ended []group
	for gr, e := range g.groups {
		if e {
			ended = append(ended, gr)
		}
	}
	for _, gr := range g.tracker.sweep(ended) {
		delete(g.groups, gr)
	}
}

// exit makes words of a wait status. before is the count of the memory limit's
// kills when the command started.
func (g *guest) exit(ws unix.WaitStatus, before int64) exit {
	e := exit{Code: ws.ExitStatus()}
	if ws.Signaled() {
		e = exit{Code: 128 + int(ws.Signal()), Signal: unix.SignalName(ws.Signal())}
		if e.Signal == "" {
			e.Signal = "SIG" + strconv.Itoa(int(ws.Signal()))
		}
	}
	// The shell passes on its child's end as 137.
	e.OOM = e.Code == 128+int(unix.SIGKILL) && g.oomKills() > before
	return e
}

// oomKills is how many processes the machine's memory limit has killed.
func (g *guest) oomKills() int64 {
	if g.opts.OOMEvents == "" {
		return 0
	}
	b, err := os.ReadFile(g.opts.OOMEvents)
	if err != nil {
		return 0
	}
	return OOMKills(b)
}

// OOMKills reads how many processes a memory limit has killed from a cgroup's
// memory.events or memory.oom_control.
func OOMKills(b []byte) int64 {
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			n, _ := strconv.ParseInt(string(bytes.TrimSpace(v)), 10, 64)
			return n
		}
	}
	return 0
}

// pipes carry a command's output, and its input if it has one.
type pipes struct {
	readers []*os.File
	in      *os.File // of the agent; with a terminal it is the reader as well
	theirs  []int    // the command's ends
}

// newPipes makes what m asks for, and puts the command's ends into im.
func newPipes(im *image, m start) (*pipes, error) {
	p := &pipes{}
	if m.Terminal != nil {
		master, slave, err := openTerminal(*m.Terminal)
		if err != nil {
			return nil, err
		}
		p.readers, p.in, p.theirs = []*os.File{master}, master, []int{slave}
		for i := range 3 {
			im.files[i] = uintptr(slave)
		}
		im.terminal = true
		return p, nil
	}
	open := func(theirs int) (*os.File, error) {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			p.closeTheirs()
			p.closeOurs()
			return nil, fmt.Errorf("making a pipe: %w", err)
		}
		ours := fds[1-theirs]
		unix.SetNonblock(ours, true)
		p.theirs = append(p.theirs, fds[theirs])
		return os.NewFile(uintptr(ours), "pipe"), nil
	}
	for i := 1; i <= 2; i++ {
		r, err := open(1)
		if err != nil {
			return nil, err
		}
		p.readers = append(p.readers, r)
		im.files[i] = uintptr(p.theirs[i-1])
	}
	if m.Input {
		w, err := open(0)
		if err != nil {
			return nil, err
		}
		p.in = w
		im.files[0] = uintptr(p.theirs[2])
	}
	return p, nil
}

func (p *pipes) closeTheirs() {
	for _, fd := range p.theirs {
		unix.Close(fd)
	}
}

func (p *pipes) closeOurs() {
	for _, f := range p.readers {
		f.Close()
	}
	if p.in != nil {
		p.in.Close() // a second time does nothing
	}
}

// A pump moves one pipe into frames.
type pump struct {
	c       *command
	kind    kind
	f       *os.File
	flushed chan struct{} // all that was there when flush was called is sent
	closed  chan struct{} // nobody holds the pipe, or the stream is broken
}

func newPump(c *command, k kind, f *os.File) *pump {
	return &pump{c: c, kind: k, f: f, flushed: make(chan struct{}), closed: make(chan struct{})}
}

// flush makes run send what the pipe holds now and then close flushed. It is
// called once, when the command has ended.
func (p *pump) flush() { p.f.SetReadDeadline(time.Unix(1, 0)) }

func (p *pump) run() {
	flushing, left := false, 0 // bytes that the pipe held when flush was called
	settle := sync.OnceFunc(func() { close(p.flushed) })
	defer close(p.closed)
	defer settle()
	defer p.f.Close()
	raw, err := p.f.SyscallConn()
	if err != nil {
		return
	}
	for {
		n, err := p.move(raw)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.f.SetReadDeadline(time.Time{})
			raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
			if err != nil {
				return
			}
			flushing = true
		case err != nil || n == 0:
			return
		default:
			left -= n
		}
		if flushing && left <= 0 {
			settle()
		}
	}
}

// buffers are shared by all pumps: an idle command holds none.
var buffers = sync.Pool{New: func() any { return new([headerSize + chunk]byte) }}

// move waits until the pipe has something, and sends it as one frame. 0 is the
// end of the pipe.
func (p *pump) move(raw syscall.RawConn) (n int, err error) {
	var buf *[headerSize + chunk]byte
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[headerSize + chunk]byte)
		for {
			n, rerr = unix.Read(int(fd), buf[headerSize:])
			if rerr != unix.EINTR {
				break
			}
		}
		if rerr == unix.EAGAIN {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if buf == nil {
		return 0, err
	}
	defer buffers.Put(buf)
	if rerr != nil {
		return 0, rerr
	}
	if n <= 0 {
		return 0, nil
	}
	if !p.c.credit.take(n) {
		return 0, os.ErrClosed
	}
	putHeader(buf[:], p.kind, p.c.id, n)
	return n, p.c.out.write(buf[:headerSize+n])
}

// A flow bounds what is on the way: take waits for what give returns.
type flow struct {
	mu     sync.Mutex
	more   sync.Cond
	size   int
	n      int
	closed bool
}

func newFlow(size int) *flow {
	f := &flow{size: size, n: size}
	f.more.L = &f.mu
	return f
}

// take waits until n bytes may be sent; false means that none will be.
func (f *flow) take(n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.n < n && !f.closed {
		f.more.Wait()
	}
	f.n -= n
	return !f.closed
}

// give returns n bytes; false means that they had not been taken.
func (f *flow) give(n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n <= 0 || n > f.size-f.n && !f.closed {
		return false
	}
	f.n += n
	f.more.Broadcast()
	return true
}

func (f *flow) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.more.Broadcast()
}
