package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"bj/sandbox"
)

func header(k kind, id, size uint32) []byte {
	b := make([]byte, headerSize)
	putHeader(b, k, id, 0)
	binary.BigEndian.PutUint32(b, size)
	return b
}

func TestReadFrame(t *testing.T) {
	large := bytes.Repeat([]byte("x"), 3*chunk)
	for _, c := range []struct {
		name string
		in   []byte
		want frame
		err  error
	}{
		{"empty", nil, frame{}, io.EOF},
		{"half a header", header(kindBye, 0, 0)[:5], frame{}, io.ErrUnexpectedEOF},
		{"no payload", header(kindBye, 7, 0), frame{kindBye, 7, []byte{}}, nil},
		{"small", append(header(kindStdout, 7, 2), "ab"...), frame{kindStdout, 7, []byte("ab")}, nil},
		{"large", append(header(kindStart, 7, uint32(len(large))), large...), frame{kindStart, 7, large}, nil},
		{"half a payload", append(header(kindStdout, 7, 3), "ab"...), frame{}, io.ErrUnexpectedEOF},
		{"half a large payload", append(header(kindStart, 7, maxFrame), large...), frame{}, io.ErrUnexpectedEOF},
		{"nothing of a payload", header(kindStdout, 7, 3), frame{}, io.ErrUnexpectedEOF},
		{"too large", header(kindStart, 7, maxFrame+1), frame{}, errFrame},
		{"kind 0", header(0, 7, 0), frame{}, errFrame},
		{"unknown kind", header(lastKind+1, 7, 0), frame{}, errFrame},
	} {
		f, err := readFrame(iotest.OneByteReader(bytes.NewReader(c.in)))
		if !errors.Is(err, c.err) || !reflect.DeepEqual(f, c.want) {
			t.Errorf("%s: %.40v, %v", c.name, f, err)
		}
	}
}

// What parses prints back, and parsing ends.
func FuzzFrame(f *testing.F) {
	f.Add(append(header(kindStdout, 7, 2), "ab"...))
	f.Add(append(header(kindBye, 0, 0), header(kindQuit, 1, 0)...))
	f.Add(header(kindStart, 7, maxFrame))
	f.Add(header(99, 7, 1<<31))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var out []byte
		for {
			f, err := readFrame(r)
			if err != nil {
				break
			}
			b := make([]byte, headerSize)
			putHeader(b, f.kind, f.id, len(f.payload))
			out = append(append(out, b...), f.payload...)
		}
		if !bytes.HasPrefix(in, out) {
			t.Errorf("%x parsed as %x", in, out)
		}
	})
}

// Every message that parses prints back to the same.
func FuzzMessages(f *testing.F) {
	for _, m := range []any{
		hello{protocol, "nonce"},
		start{Script: []byte("echo\xff"), Argv: [][]byte{{0}}, Env: [][]byte{[]byte("A=b")}, User: "u", Unit: "v"},
		credit{7}, target{Command: 1}, target{Unit: "x"}, put{"/p", 0o644, 3, false},
		reply{Error: "e", PID: 1, Count: 2, Outcomes: []Outcome{{Sent, "EPERM"}}},
		exit{137, "SIGKILL", true}, []Probe{{Kind: ProbeTCP}},
	} {
		b, err := encode(kindReply, 1, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[headerSize:])
	}
	f.Add([]byte(`{"Script":"not base64"}`))
	f.Add([]byte(`[{"To":"1.2.3.4:99999"}]`))
	f.Fuzz(func(t *testing.T, in []byte) {
		fr := frame{payload: in}
		roundTrip[hello](t, fr)
		roundTrip[start](t, fr)
		roundTrip[credit](t, fr)
		roundTrip[target](t, fr)
		roundTrip[put](t, fr)
		roundTrip[reply](t, fr)
		roundTrip[exit](t, fr)
		roundTrip[[]Probe](t, fr)
	})
}

func roundTrip[T any](t *testing.T, f frame) {
	m, err := decode[T](f)
	if err != nil {
		if !errors.Is(err, errFrame) {
			t.Errorf("%T: %v is not an error of the frame", m, err)
		}
		return
	}
	b, err := encode(kindReply, 1, m)
	if err != nil {
		t.Fatalf("%T: %v", m, err)
	}
	again, err := decode[T](frame{payload: b[headerSize:]})
	if err != nil {
		t.Fatalf("%T: %s: %v", m, b[headerSize:], err)
	}
	b2, err := encode(kindReply, 1, again)
	if err != nil || !bytes.Equal(b, b2) {
		t.Errorf("%T: %s, then %s, %v", m, b, b2, err)
	}
}

// A fakeGuest speaks the guest's part as the test tells it.
type fakeGuest struct {
	t    *testing.T
	conn net.Conn
	*Client
}

func newFakeGuest(t *testing.T) *fakeGuest {
	host, guest := net.Pipe()
	t.Cleanup(func() { host.Close(); guest.Close() })
	g := &fakeGuest{t: t, conn: guest}
	go g.send(kindHello, 0, hello{protocol, "n"})
	var err error
	if g.Client, err = NewClient(testContext(t), host); err != nil {
		t.Fatal(err)
	}
	if f := g.read(); f.kind != kindAttach || !strings.Contains(string(f.payload), `"n"`) {
		t.Fatalf("got %v", f)
	}
	return g
}

func (g *fakeGuest) read() frame {
	g.t.Helper()
	g.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	f, err := readFrame(g.conn)
	if err != nil {
		g.t.Fatal(err)
	}
	return f
}

// send ignores errors: the client may have closed the stream, as it should.
func (g *fakeGuest) send(k kind, id uint32, m any) {
	b, err := encode(k, id, m)
	if err != nil {
		g.t.Error(err)
	}
	g.conn.Write(b)
}

func (g *fakeGuest) data(k kind, id uint32, b []byte) {
	h := make([]byte, headerSize)
	putHeader(h, k, id, len(b))
	g.conn.Write(append(h, b...))
}

// start starts a command of which output blocks for ever.
func (g *fakeGuest) start() (sandbox.Process, uint32) {
	g.t.Helper()
	id := make(chan uint32, 1)
	go func() {
		f := g.read()
		g.send(kindReply, f.id, reply{PID: 2})
		id <- f.id
	}()
	gate := make(chan struct{})
	g.t.Cleanup(func() { close(gate) })
	p, err := g.Start(testContext(g.t), sandbox.Command{Script: "x"}, func(sandbox.Stream, []byte) { <-gate })
	if err != nil {
		g.t.Fatal(err)
	}
	return p, <-id
}

// A guest that breaks the protocol loses its stream, and cannot fill memory.
func TestBadGuest(t *testing.T) {
	for name, misbehave := range map[string]func(g *fakeGuest, id uint32){
		"garbage":                func(g *fakeGuest, id uint32) { g.conn.Write(bytes.Repeat([]byte{0xee}, 100)) },
		"end of file":            func(g *fakeGuest, id uint32) { g.conn.Close() },
		"half a frame":           func(g *fakeGuest, id uint32) { g.conn.Write(header(kindExit, id, 10)); g.conn.Close() },
		"a request":              func(g *fakeGuest, id uint32) { g.send(kindStart, id, start{}) },
		"a second hello":         func(g *fakeGuest, id uint32) { g.send(kindHello, id, hello{protocol, "n"}) },
		"no message":             func(g *fakeGuest, id uint32) { g.data(kindExit, id, []byte("{")) },
		"two exits":              func(g *fakeGuest, id uint32) { g.send(kindExit, id, exit{}); g.send(kindExit, id, exit{}) },
		"more than the window":   func(g *fakeGuest, id uint32) { flood(g, id, chunk) },
		"many single characters": func(g *fakeGuest, id uint32) { flood(g, id, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newFakeGuest(t)
			_, id := g.start()
			misbehave(g, id)
			select {
			case <-g.Lost():
			case <-testContext(t).Done():
				t.Fatal("the stream is still open")
			}
			if err := g.Err(); !errors.Is(err, ErrLost) {
				t.Errorf("got %v", err)
			}
			if _, err := g.Start(testContext(t), sandbox.Command{}, nil); !errors.Is(err, ErrLost) {
				t.Errorf("starting afterwards: %v", err)
			}
		})
	}
}

func flood(g *fakeGuest, id uint32, size int) {
	b := make([]byte, size)
	for range window/size + 2 {
		g.data(kindStdout, id, b)
	}
}

// A command whose exit did not come has failed, whatever it wrote.
func TestLostWhileRunning(t *testing.T) {
	for name, end := range map[string]func(g *fakeGuest, id uint32){
		"lost":           func(g *fakeGuest, id uint32) { g.conn.Close() },
		"bye":            func(g *fakeGuest, id uint32) { g.send(kindBye, 0, nil) },
		"end, no exit":   func(g *fakeGuest, id uint32) { g.send(kindEnd, id, nil) },
		"closed by host": func(g *fakeGuest, id uint32) { g.Client.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			g := newFakeGuest(t)
			p, id := g.start()
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			if _, err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("waiting: %v", err)
			}
			end(g, id)
			if e, err := p.Wait(testContext(t)); !errors.Is(err, ErrLost) {
				t.Errorf("got %+v, %v", e, err)
			}
		})
	}
}

func TestNoHello(t *testing.T) {
	for name, say := range map[string]func(c net.Conn){
		"silence":          func(c net.Conn) {},
		"end of file":      func(c net.Conn) { c.Close() },
		"another frame":    func(c net.Conn) { c.Write(header(kindBye, 0, 0)) },
		"another protocol": func(c net.Conn) { b, _ := encode(kindHello, 0, hello{protocol + 1, "n"}); c.Write(b) },
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			defer guest.Close()
			go say(guest)
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			if _, err := NewClient(ctx, host); err == nil {
				t.Error("no error")
			}
			if _, err := host.Write([]byte{0}); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the stream was left open: %v", err)
			}
		})
	}
}

// When the host is gone, so is everything in the machine.
func TestHostGone(t *testing.T) {
	for name, leave := range map[string]func(m *machine){
		"end of file": func(m *machine) { m.conn.Close() },
		"garbage":     func(m *machine) { m.conn.Write(bytes.Repeat([]byte{0xee}, 100)) },
		"not for the guest": func(m *machine) {
			m.queue <- header(kindExit, 1, 0)
		},
		"data of no file": func(m *machine) {
			m.queue <- header(kindData, 1, 0)
		},
		"credit of nobody's": func(m *machine) {
			b, _ := encode(kindCredit, 1, credit{1 << 40})
			m.queue <- b
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, false)
			// The last of these leaves its group, and keeps its output.
			p, err := m.Start(testContext(t), sandbox.Command{Script: "(setsid sleep 1001 &) ; unshare -C sleep 1003 & exec sleep 1002"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			leave(m)
			if _, err := p.Wait(testContext(t)); !errors.Is(err, ErrLost) {
				t.Errorf("got %v", err)
			}
			if m.wait(t) == nil {
				t.Error("the guest has ended without an error")
			}
		})
	}
}

// wait waits for the end of the guest, and with it of every other process.
func (m *machine) wait(t *testing.T) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- m.guest.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-testContext(t).Done():
		t.Fatal("the guest lives on")
		return nil
	}
}

// A guest whose context is done ends as if the host were gone.
func TestServeDone(t *testing.T) {
	m := newMachineFrom(t, func(_ testing.TB, g *exec.Cmd) {
		g.Env = append(g.Env, "AGENT_TEST_WITHIN=300ms")
	})
	p, err := m.Start(testContext(t), sandbox.Command{Script: "sleep 1000"}, nil)
	if err == nil { // else it took longer than that to get here
		if _, err := p.Wait(testContext(t)); !errors.Is(err, ErrLost) {
			t.Errorf("got %v", err)
		}
	}
	if err := m.wait(t); err == nil || !strings.Contains(m.stderr.String(), "deadline exceeded") {
		t.Errorf("%v, %s", err, m.stderr)
	}
}

// The guest's death is seen at once.
func TestGuestGone(t *testing.T) {
	m := newMachine(t, false)
	p, err := m.Start(testContext(t), sandbox.Command{Script: "sleep 1000"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.guest.Process.Kill()
	if _, err := p.Wait(testContext(t)); !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
	if _, err := m.KillUnit(testContext(t), "x"); !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
	if err := m.Close(testContext(t)); !errors.Is(err, ErrLost) {
		t.Errorf("closing: %v", err)
	}
}

// A guest that does not answer is left when the context says so.
func TestDeadlines(t *testing.T) {
	g := newFakeGuest(t)
	go io.Copy(io.Discard, g.conn)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := g.KillUnit(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	ctx2, cancel2 := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel2()
	if err := g.Close(ctx2); !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
}
