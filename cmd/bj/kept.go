package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bj/run"
	"bj/sandbox"
)

// An environment that bj test --keep holds belongs to that process, and dies
// with it. bj shell asks it for a shell over an abstract Unix socket, which is
// no file and so cannot be left behind; either side makes sure that the other
// is the same user.

// keptName is the name of the socket of a recipe's kept environment.
func keptName(root, label string) string {
	sum := sha256.Sum256([]byte(root + "\x00" + label))
	return fmt.Sprintf("@bj-kept-%d-%x", os.Geteuid(), sum[:12])
}

// The frames between the two: a kind, a big-endian length, a payload.
const (
	keptOpen   = 'O' // keptRequest
	keptInput  = 'i'
	keptEnd    = 'z' // of the input
	keptSize   = 'r' // sandbox.Terminal
	keptStdout = 'o'
	keptStderr = 'e'
	keptExit   = 'x' // keptAnswer
)

// maxKept bounds a frame's payload.
const maxKept = 64 << 10

type keptRequest struct {
	Machine string
	Size    *sandbox.Terminal
	Term    string
}

type keptAnswer struct {
	Code  int
	Error string
}

// keptWriter writes whole frames from several goroutines.
type keptWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (k *keptWriter) send(kind byte, payload []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for first := true; first || len(payload) > 0; first = false {
		n := min(len(payload), maxKept)
		b := make([]byte, 5, 5+n)
		b[0] = kind
		binary.BigEndian.PutUint32(b[1:], uint32(n))
		if _, err := k.w.Write(append(b, payload[:n]...)); err != nil {
			return err
		}
		payload = payload[n:]
	}
	return nil
}

func (k *keptWriter) sendJSON(kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return k.send(kind, b)
}

// stream is an io.Writer of one kind of frames.
type keptStream struct {
	*keptWriter
	kind byte
}

func (s keptStream) Write(b []byte) (int, error) { return len(b), s.send(s.kind, b) }

func readKept(r io.Reader) (kind byte, payload []byte, err error) {
	var h [5]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > maxKept {
		return 0, nil, fmt.Errorf("a frame of %d bytes", n)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r, payload)
	return h[0], payload, err
}

// sameUser reports an error unless the other side of c is this user, or root.
func sameUser(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if cred.Uid != uint32(os.Geteuid()) && cred.Uid != 0 {
		return fmt.Errorf("it belongs to user %d", cred.Uid)
	}
	return nil
}

// serveKept lets people into a kept environment until ctx is done.
func serveKept(ctx context.Context, root string, in *run.Inside) {
	l, err := net.Listen("unix", keptName(root, in.Label))
	if err != nil {
		return // another bj keeps one of the same recipe
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var visits sync.WaitGroup
	defer visits.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		visits.Go(func() { admit(ctx, c.(*net.UnixConn), in) })
	}
}

// admit serves one visitor.
func admit(ctx context.Context, c *net.UnixConn, in *run.Inside) {
	defer c.Close()
	if sameUser(c) != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	r, w := bufio.NewReader(c), &keptWriter{w: c}
	kind, payload, err := readKept(r)
	var q keptRequest
	if err != nil || kind != keptOpen || json.Unmarshal(payload, &q) != nil {
		return
	}
	if q.Machine == "" && len(in.Machines) > 0 {
		q.Machine = in.Machines[0]
	}
	typed, typing := io.Pipe()
	resized := make(chan sandbox.Terminal, 1)
	go func() {
		defer cancel() // the visitor has gone
		defer typing.Close()
		for {
			kind, payload, err := readKept(r)
			if err != nil {
				return
			}
			switch kind {
			case keptInput:
				typing.Write(payload)
			case keptEnd:
				typing.Close()
			case keptSize:
				var size sandbox.Terminal
				if json.Unmarshal(payload, &size) == nil {
					select {
					case resized <- size:
					case <-ctx.Done():
					}
				}
			}
		}
	}()
	defer typed.Close()
	exit, err := visit(ctx, in, q.Machine, &seat{stdin: typed, stdout: keptStream{w, keptStdout}, stderr: keptStream{w, keptStderr}, size: q.Size, resized: resized, term: q.Term})
	a := keptAnswer{Code: exit.Code}
	if err != nil {
		a.Error = err.Error()
	}
	w.sendJSON(keptExit, a)
}

// enterKept enters the kept environment of a recipe, if there is one.
func (e *env) enterKept(ctx context.Context, root, label, machine string) (entered bool, err error) {
	conn, err := net.DialTimeout("unix", keptName(root, label), time.Second)
	if err != nil {
		return false, nil
	}
	c := conn.(*net.UnixConn)
	defer c.Close()
	if err := sameUser(c); err != nil {
		return false, nil // not ours
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	fmt.Fprintf(e.stderr, "bj: entering what bj test --keep has kept of %s; --fresh leases new machines\n", label)
	s, leave, err := e.sit()
	if err != nil {
		return true, err
	}
	defer leave()
	w := &keptWriter{w: c}
	if err := w.sendJSON(keptOpen, keptRequest{Machine: machine, Size: s.size, Term: s.term}); err != nil {
		return true, fmt.Errorf("entering the kept environment: %w", err)
	}
	go func() {
		if _, err := io.Copy(keptStream{w, keptInput}, s.stdin); err == nil {
			w.send(keptEnd, nil)
		}
	}()
	go func() {
		for size := range s.resized {
			w.sendJSON(keptSize, size)
		}
	}()
	r := bufio.NewReader(c)
	for {
		kind, payload, err := readKept(r)
		if err != nil {
			leave()
			if cause := context.Cause(ctx); cause != nil {
				return true, cause
			}
			return true, errors.New("the kept environment is gone: its deadline has come, or bj test has ended")
		}
		switch kind {
		case keptStdout:
			s.stdout.Write(payload)
		case keptStderr:
			s.stderr.Write(payload)
		case keptExit:
			leave()
			var a keptAnswer
			if err := json.Unmarshal(payload, &a); err != nil {
				return true, fmt.Errorf("leaving the kept environment: %w", err)
			}
			if a.Error != "" {
				return true, errors.New(a.Error)
			}
			return true, s.verdict(sandbox.Exit{Code: a.Code}, nil)
		}
	}
}
