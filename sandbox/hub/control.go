package hub

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxFrame bounds one message of the control channel, in bytes.
const maxFrame = 16 << 20

// MaxFDs bounds the descriptors that one message carries: the kernel's own
// limit (SCM_MAX_FD).
const MaxFDs = 253

// Peer is one end of the control channel between bj and a gateway: requests
// in both directions over one Unix stream socket, each with its answer, and
// with file descriptors beside either. Frames are a big-endian length and a
// JSON frame; descriptors travel with the length.
type Peer struct {
	conn   *net.UnixConn
	handle func(ctx context.Context, method string, params json.RawMessage, fds []*os.File) (any, []*os.File, error)

	writing sync.Mutex

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan frame
	err     error // why the channel ended

	done chan struct{}
}

// frame is one message: a request if Method is set, an answer otherwise.
type frame struct {
	ID     uint64          `json:"id"`
	Method string          `json:"method,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
	Error  *wireError      `json:"error,omitempty"`
	FDs    int             `json:"fds,omitempty"`

	files []*os.File
}

// wireError carries an error of either side across the channel.
type wireError struct {
	Code string `json:"code,omitempty"` // of a sandbox.Error
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
	// Errno is the system's error number: by it the relay tells a connection that
	// the other side refused, which it answers with a reset, from silence.
	Errno int `json:"errno,omitempty"`
}

// NewPeer takes over conn. Run must be called to serve it.
func NewPeer(conn *net.UnixConn, handle func(context.Context, string, json.RawMessage, []*os.File) (any, []*os.File, error)) *Peer {
	return &Peer{conn: conn, handle: handle, waiting: map[uint64]chan frame{}, done: make(chan struct{})}
}

// Run reads until the channel ends, answers requests each in a goroutine of
// its own, and returns why it ended (io.EOF if the other side closed it). All
// calls that wait get that error.
func (p *Peer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := p.read(ctx)
	p.mu.Lock()
	p.err = err
	for id, ch := range p.waiting {
		close(ch)
		delete(p.waiting, id)
	}
	p.mu.Unlock()
	close(p.done)
	p.conn.Close()
	return err
}

func (p *Peer) read(ctx context.Context) error {
	for {
		f, err := p.readFrame()
		if err != nil {
			return err
		}
		if f.Method == "" {
			p.mu.Lock()
			ch := p.waiting[f.ID]
			delete(p.waiting, f.ID)
			p.mu.Unlock()
			if ch == nil {
				CloseAll(f.files)
				continue
			}
			ch <- f
			continue
		}
		go func() {
			body, fds, err := p.handle(ctx, f.Method, f.Body, f.files)
			answer := frame{ID: f.ID, files: fds}
			if err != nil {
				answer.Error = toWire(err)
			} else if body != nil {
				answer.Body, err = json.Marshal(body)
				if err != nil {
					answer.Error = toWire(fmt.Errorf("encoding the answer to %s: %w", f.Method, err))
				}
			}
			p.writeFrame(answer) // an error here ends the reader as well
			CloseAll(fds)
		}()
	}
}

func (p *Peer) readFrame() (frame, error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(MaxFDs*4))
	n, oobn, flags, _, err := p.conn.ReadMsgUnix(head[:], oob)
	if err != nil {
		return frame{}, err
	}
	if n == 0 {
		return frame{}, io.EOF
	}
	files, err := ParseRights(oob[:oobn])
	if err != nil {
		return frame{}, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		CloseAll(files)
		return frame{}, errors.New("reading a control frame: descriptors were lost")
	}
	if n < len(head) {
		if _, err := io.ReadFull(p.conn, head[n:]); err != nil {
			CloseAll(files)
			return frame{}, err
		}
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxFrame {
		CloseAll(files)
		return frame{}, fmt.Errorf("reading a control frame: %d bytes is more than %d", size, maxFrame)
	}
	buf := make([]byte, size)
	if _, err := io.ReadFull(p.conn, buf); err != nil {
		CloseAll(files)
		return frame{}, err
	}
	var f frame
	if err := json.Unmarshal(buf, &f); err != nil {
		CloseAll(files)
		return frame{}, fmt.Errorf("decoding a control frame: %w", err)
	}
	if f.FDs != len(files) {
		CloseAll(files)
		return frame{}, fmt.Errorf("reading a control frame: %d descriptors instead of %d", len(files), f.FDs)
	}
	f.files = files
	return f, nil
}

func (p *Peer) writeFrame(f frame) error {
	f.FDs = len(f.files)
	buf, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if len(buf) > maxFrame {
		return fmt.Errorf("writing a control frame: %d bytes is more than %d", len(buf), maxFrame)
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(buf)))
	var oob []byte
	if len(f.files) > 0 {
		fds := make([]int, len(f.files))
		for i, file := range f.files {
			fds[i] = int(file.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	p.writing.Lock()
	defer p.writing.Unlock()
	if _, _, err := p.conn.WriteMsgUnix(head[:], oob, nil); err != nil {
		return err
	}
	_, err = p.conn.Write(buf)
	return err
}

// Call sends a request and waits for its answer, which it decodes into result
// unless that is nil. The caller keeps fds, and owns what is returned.
func (p *Peer) Call(ctx context.Context, method string, params, result any, fds ...*os.File) ([]*os.File, error) {
	body, err := json.Marshal(params)
	if err != nil {
		return nil, err
	}
	ch := make(chan frame, 1)
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return nil, p.ended(method)
	}
	p.next++
	id := p.next
	p.waiting[id] = ch
	p.mu.Unlock()
	if err := p.writeFrame(frame{ID: id, Method: method, Body: body, files: fds}); err != nil {
		p.mu.Lock()
		delete(p.waiting, id)
		p.mu.Unlock()
		return nil, fmt.Errorf("asking for %s: %w", method, err)
	}
	select {
	case f, ok := <-ch:
		if !ok {
			return nil, p.ended(method)
		}
		if f.Error != nil {
			CloseAll(f.files)
			return nil, f.Error.err()
		}
		if result != nil {
			if err := json.Unmarshal(f.Body, result); err != nil {
				CloseAll(f.files)
				return nil, fmt.Errorf("decoding the answer to %s: %w", method, err)
			}
		}
		return f.files, nil
	case <-ctx.Done():
		p.mu.Lock()
		delete(p.waiting, id)
		p.mu.Unlock()
		// An answer that was on its way may carry descriptors.
		select {
		case f := <-ch:
			CloseAll(f.files)
		default:
		}
		return nil, fmt.Errorf("asking for %s: %w", method, context.Cause(ctx))
	}
}

func (p *Peer) ended(method string) error {
	return fmt.Errorf("asking for %s: the environment is gone", method)
}

// ParseRights returns the descriptors in the control messages oob.
func ParseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("reading descriptors: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			CloseAll(files)
			return nil, fmt.Errorf("reading descriptors: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "control"))
		}
	}
	return files, nil
}

// CloseAll closes files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// SocketPair returns two connected Unix stream sockets, both close-on-exec.
func SocketPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "socketpair"), os.NewFile(uintptr(fds[1]), "socketpair"), nil
}

// UnixConn turns one end of a socketpair into a connection, and closes f.
func UnixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("using a socket: %w", err)
	}
	return c.(*net.UnixConn), nil
}

// CloseInherited closes the descriptors above own, but for those by which the
// runtime waits for events: any package may have used a timer before main, and
// a poller that was closed under its runtime fails every socket from then on.
func CloseInherited(own int) error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range open {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= own {
			continue
		}
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "anon_inode:[event") {
			unix.CloseOnExec(fd)
			continue
		}
		unix.Close(fd) // the folder's own is closed already
	}
	return nil
}
