package gate_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bj/sandbox"
	"bj/sandbox/gate"
	"bj/sandbox/seal"
	"bj/sandbox/seal/sealtest"
)

const (
	outside4 = "192.0.2.1"
	outside6 = "2001:db8::1"
	brief    = 400 * time.Millisecond // how long silence is listened to
	soon     = 10 * time.Second
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// setting is a hub with machines, sealed, with a relay to a world of its own.
type setting struct {
	*sealtest.Net
	t     testing.TB
	world *sealtest.NS
	table *seal.Table
	relay *gate.Relay
	dials atomic.Int64
	dial  atomic.Pointer[dialFunc] // how the relay dials
}

type dialFunc func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)

func (s *setting) dialBy(f dialFunc) { s.dial.Store(&f) }

func allow(protocol, where string, first, last uint16) sandbox.Allow {
	return sandbox.Allow{Protocol: protocol, Prefix: prefix(where), First: first, Last: last}
}

// usual opens ports 1000 to 2000 of the outside.
func usual() sandbox.Policy {
	return sandbox.Policy{Allows: []sandbox.Allow{
		allow("tcp", outside4+"/32", 1000, 2000), allow("tcp", outside6+"/128", 1000, 2000),
		allow("udp", outside4+"/32", 1000, 2000), allow("udp", outside6+"/128", 1000, 2000),
		allow("icmp", outside4+"/32", 0, 0), allow("icmp", outside6+"/128", 0, 0),
	}}
}

func newSetting(t testing.TB, machines int, p sandbox.Policy, change func(*gate.Config)) *setting {
	t.Helper()
	s := &setting{Net: sealtest.New(t, machines), t: t}
	s.world = sealtest.NewNS(t)
	s.world.Up(outside4, "192.0.2.2", outside6, "2001:db8::2")
	s.world.Sysctl("ipv4/ping_group_range", "0 0")
	s.dialBy(s.dialWorld)
	for i := range s.Config.Machines {
		s.Config.Machines[i].Tagged = true // where the policy has units
	}
	rules, err := seal.CompileHub(p, s.Config)
	if err != nil {
		t.Fatal(err)
	}
	if s.table, err = seal.Apply(s.Hub.FD(), rules); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.table.Close() })
	before := s.Leaked(t) // of links that came up
	c := gate.Config{
		NetNS: s.Hub.FD(), TCP: s.Config.RelayTCP, UDP: s.Config.RelayUDP, Queue: s.Config.Queue,
		MarkDialled: seal.MarkDialled, MarkRefused: seal.MarkRefused, MarkReply: seal.MarkReply,
		Own: []netip.Addr{s.Config.Gateway4, s.Config.Gateway6}, Units: p.Units, MarkUnit: seal.MarkUnit, DialTimeout: 5 * time.Second,
		Dial: func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
			s.dials.Add(1)
			return (*s.dial.Load())(ctx, network, to)
		},
	}
	for _, m := range s.Config.Machines {
		c.Machines = append(c.Machines, gate.Machine{Name: m.Name, V4: m.V4, V6: m.V6})
	}
	if change != nil {
		change(&c)
	}
	if s.relay, err = gate.Open(c, p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.relay.Close()
		if n := s.Leaked(t) - before; n != 0 {
			t.Errorf("%d packets reached the witness", n)
		}
	})
	return s
}

func (s *setting) dialWorld(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := s.world.Do(func() (err error) {
		if network == "icmp" {
			c, err = pingSocket(to.Addr())
			return err
		}
		c, err = (&net.Dialer{}).DialContext(ctx, network, to.String())
		return err
	})
	return c, err
}

// pingSocket returns a connected socket for echo requests as an ordinary user
// may have one.
func pingSocket(to netip.Addr) (net.Conn, error) {
	family, protocol := syscall.AF_INET, syscall.IPPROTO_ICMP
	if to.Is6() {
		family, protocol = syscall.AF_INET6, syscall.IPPROTO_ICMPV6
	}
	fd, err := syscall.Socket(family, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	if to.Is6() {
		err = syscall.Connect(fd, &syscall.SockaddrInet6{Addr: to.As16()})
	} else {
		err = syscall.Connect(fd, &syscall.SockaddrInet4{Addr: to.As4()})
	}
	if err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// echoServer answers every connection with what it says.
func (s *setting) echoServer(network, address string) {
	l := s.world.Listen(network, address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.(*net.TCPConn).CloseWrite()
				c.Close()
			}()
		}
	}()
}

func (s *setting) echoPackets(network, address string) {
	c := s.world.ListenPacket(network, address)
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(b[:n], from)
		}
	}()
}

func join(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

func families(t *testing.T, f func(t *testing.T, outside, other string)) {
	t.Run("v4", func(t *testing.T) { f(t, outside4, "192.0.2.2") })
	t.Run("v6", func(t *testing.T) { f(t, outside6, "2001:db8::2") })
}

// A connection is carried both ways, and the end of one direction leaves the
// other open.
func TestTCP(t *testing.T) {
	families(t, func(t *testing.T, outside, _ string) {
		s := newSetting(t, 1, usual(), nil)
		s.echoServer("tcp", join(outside, 1000))
		c, err := s.Machines[0].Dial("tcp", join(outside, 1000), soon)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.RemoteAddr().String(); got != join(outside, 1000) {
			t.Errorf("the machine sees %s", got)
		}
		c.SetDeadline(time.Now().Add(soon))
		data := make([]byte, 3<<20)
		rand.Read(data)
		go func() {
			c.Write(data)
			c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("got %d bytes of %d back: %v", len(got), len(data), err)
		}
		c.Close()
		s.used(sandbox.Use{Count: 1, Bytes: 2 * int64(len(data))})
	})
}

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// used waits until the relay has counted so.
func (s *setting) used(want ...sandbox.Use) {
	s.t.Helper()
	eventually(s.t, func() error {
		if got := s.relay.Used(); !slices.Equal(got, want) {
			return fmt.Errorf("used %v, want %v", got, want)
		}
		return nil
	})
}

func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(soon)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// What the other side refuses is refused, and what is not allowed is silent
// and never dialled.
func TestTCPRefusedAndClosed(t *testing.T) {
	families(t, func(t *testing.T, outside, other string) {
		s := newSetting(t, 1, usual(), nil)
		if _, err := s.Machines[0].Dial("tcp", join(outside, 1001), soon); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a refused port: %v", err)
		}
		dials := s.dials.Load()
		for _, address := range []string{join(outside, 999), join(outside, 2001), join(other, 1000)} {
			if _, err := s.Machines[0].Dial("tcp", address, brief); !timedOut(err) {
				t.Errorf("%s: %v", address, err)
			}
		}
		if n := s.dials.Load(); n != dials {
			t.Errorf("%d dials of what is closed", n-dials)
		}
	})
}

// While the other side has not answered, the machine hears nothing, and one
// dial is all.
func TestTCPHeld(t *testing.T) {
	s := newSetting(t, 1, usual(), nil)
	s.echoServer("tcp", join(outside4, 1000))
	release, dialling := make(chan struct{}), make(chan struct{}, 8)
	s.dialBy(func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
		dialling <- struct{}{}
		select {
		case <-release:
			return s.dialWorld(ctx, network, to)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	result := make(chan error, 1)
	go func() {
		_, err := s.Machines[0].Dial("tcp", join(outside4, 1000), soon)
		result <- err
	}()
	<-dialling
	select {
	case err := <-result:
		t.Fatalf("connected while the other side had not answered: %v", err)
	case <-time.After(1500 * time.Millisecond): // a repetition comes after one second
	}
	close(release)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if n := s.dials.Load(); n != 1 {
		t.Errorf("%d dials", n)
	}
}

// A dial that times out is silence.
func TestTCPTimeout(t *testing.T) {
	s := newSetting(t, 1, usual(), func(c *gate.Config) { c.DialTimeout = 50 * time.Millisecond })
	s.dialBy(func(ctx context.Context, _ string, _ netip.AddrPort) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if _, err := s.Machines[0].Dial("tcp", join(outside4, 1000), brief); !timedOut(err) {
		t.Errorf("got %v", err)
	}
}

// A reset of either side reaches the other.
func TestTCPReset(t *testing.T) {
	s := newSetting(t, 1, usual(), nil)
	l := s.world.Listen("tcp", join(outside4, 1000))
	for _, side := range []string{"outer", "inner"} {
		in, err := s.Machines[0].Dial("tcp", join(outside4, 1000), soon)
		if err != nil {
			t.Fatal(err)
		}
		out, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		from, to := out, in
		if side == "inner" {
			from, to = in, out
		}
		from.(*net.TCPConn).SetLinger(0)
		from.Close()
		to.SetDeadline(time.Now().Add(soon))
		if _, err := io.ReadAll(to); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reset by the %s side: %v", side, err)
		}
	}
}

func TestManyConnections(t *testing.T) {
	s := newSetting(t, 2, usual(), nil)
	s.echoServer("tcp", join(outside4, 1000))
	s.echoServer("tcp", join(outside6, 1000))
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			outside := []string{outside4, outside6}[i%2]
			c, err := s.Machines[i/2%2].Dial("tcp", join(outside, 1000), soon)
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			c.SetDeadline(time.Now().Add(soon))
			text := fmt.Sprintf("connection %d", i)
			fmt.Fprint(c, text)
			c.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(c); err != nil || string(got) != text {
				t.Errorf("connection %d: %q, %v", i, got, err)
			}
			c.Close()
		})
	}
	wg.Wait()
	eventually(t, func() error {
		if u := s.relay.Used(); len(u) != 1 || u[0].Count != 200 {
			return fmt.Errorf("used %v", u)
		}
		return nil
	})
}

func TestUDP(t *testing.T) {
	families(t, func(t *testing.T, outside, other string) {
		s := newSetting(t, 1, usual(), nil)
		s.echoPackets("udp", join(outside, 1000))
		s.echoPackets("udp", join(outside, 3000))
		s.echoPackets("udp", join(other, 1000))
		c, err := s.Machines[0].Dial("udp", join(outside, 1000), soon)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{1, 1400, 40000} {
			data := make([]byte, size)
			rand.Read(data)
			exchange(t, c, data, data)
		}
		if n := s.dials.Load(); n != 1 {
			t.Errorf("%d dials of one flow", n)
		}
		for _, closed := range []string{join(outside, 3000), join(other, 1000)} {
			c, err := s.Machines[0].Dial("udp", closed, soon)
			if err != nil {
				t.Fatal(err)
			}
			c.Write([]byte("hello"))
			c.SetDeadline(time.Now().Add(brief))
			if n, err := c.Read(make([]byte, 10)); !timedOut(err) {
				t.Errorf("%s: %d bytes, %v", closed, n, err)
			}
		}
		s.used(sandbox.Use{Count: 1, Bytes: 2 * 41401})
	})
}

// exchange sends until the answer comes, since datagrams may be lost.
func exchange(t testing.TB, c net.Conn, data, want []byte) {
	t.Helper()
	c.SetDeadline(time.Now().Add(soon))
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 65536)
	n, err := c.Read(b)
	if err != nil || !bytes.Equal(b[:n], want) {
		t.Fatalf("got %d bytes, want %d: %v", n, len(want), err)
	}
}

func TestUDPIdle(t *testing.T) {
	s := newSetting(t, 1, usual(), func(c *gate.Config) { c.IdleTimeout = 50 * time.Millisecond })
	s.echoPackets("udp", join(outside4, 1000))
	c, err := s.Machines[0].Dial("udp", join(outside4, 1000), soon)
	if err != nil {
		t.Fatal(err)
	}
	for want := int64(1); want <= 3; want++ {
		exchange(t, c, []byte("hello"), []byte("hello"))
		if n := s.dials.Load(); n != want {
			t.Fatalf("%d dials, want %d", n, want)
		}
		eventually(t, func() error {
			if n := gate.OpenFlows(s.relay); n != 0 {
				return fmt.Errorf("%d flows are open", n)
			}
			return nil
		})
	}
}

func TestICMP(t *testing.T) {
	families(t, func(t *testing.T, outside, other string) {
		s := newSetting(t, 1, usual(), nil)
		s.Machines[0].Sysctl("ipv4/ping_group_range", "0 0")
		ping := func(to string, size int, timeout time.Duration) error {
			a := netip.MustParseAddr(to)
			var c net.Conn
			if err := s.Machines[0].Do(func() (err error) { c, err = pingSocket(a); return err }); err != nil {
				return err
			}
			defer c.Close()
			request := make([]byte, 8+size)
			request[0] = 8
			if a.Is6() {
				request[0] = 128
			}
			binary.BigEndian.PutUint16(request[6:], 77)
			rand.Read(request[8:])
			if _, err := c.Write(request); err != nil {
				return err
			}
			c.SetDeadline(time.Now().Add(timeout))
			reply := make([]byte, 65536)
			n, err := c.Read(reply)
			if err != nil {
				return err
			}
			if n != len(request) || !bytes.Equal(reply[6:n], request[6:]) {
				return fmt.Errorf("%d bytes that are not the request's %d", n, len(request))
			}
			return nil
		}
		for _, size := range []int{0, 56, 9000} {
			if err := ping(outside, size, soon); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
		if err := ping(other, 56, brief); !timedOut(err) {
			t.Errorf("an address that is not allowed: %v", err)
		}
		if err := ping(sealtest.Gateway4.String(), 56, brief); !timedOut(err) {
			t.Errorf("the gateway: %v", err)
		}
	})
}

// Sealing again ends what was open, also where it is still allowed, and a
// narrower policy holds at once.
func TestNarrower(t *testing.T) {
	s := newSetting(t, 1, usual(), nil)
	s.echoServer("tcp", join(outside4, 1000))
	s.echoServer("tcp", join(outside4, 1500))
	c, err := s.Machines[0].Dial("tcp", join(outside4, 1500), soon)
	if err != nil {
		t.Fatal(err)
	}
	narrow := sandbox.Policy{Allows: []sandbox.Allow{allow("tcp", outside4+"/32", 1500, 1500)}}
	s.Config.Generation++
	rules, err := seal.CompileHub(narrow, s.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.table.Replace(rules); err != nil {
		t.Fatal(err)
	}
	if err := s.relay.Seal(narrow); err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(brief))
	c.Write([]byte("hello"))
	if n, err := c.Read(make([]byte, 10)); !timedOut(err) {
		t.Errorf("an old connection: %d bytes, %v", n, err)
	}
	if _, err := s.Machines[0].Dial("tcp", join(outside4, 1000), brief); !timedOut(err) {
		t.Errorf("what is not allowed any more: %v", err)
	}
	if _, err := s.Machines[0].Dial("tcp", join(outside4, 1500), soon); err != nil {
		t.Errorf("what is still allowed: %v", err)
	}
}

// The relay asks the policy by itself: rules that let more through than it
// says open nothing.
func TestSecondCheck(t *testing.T) {
	s := newSetting(t, 1, usual(), nil)
	s.echoServer("tcp", join(outside4, 1000))
	s.echoPackets("udp", join(outside4, 1000))
	if err := s.relay.Seal(sandbox.Policy{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Machines[0].Dial("tcp", join(outside4, 1000), brief); !timedOut(err) {
		t.Errorf("tcp: %v", err)
	}
	c, err := s.Machines[0].Dial("udp", join(outside4, 1000), soon)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("hello"))
	c.SetDeadline(time.Now().Add(brief))
	if _, err := c.Read(make([]byte, 10)); !timedOut(err) {
		t.Errorf("udp: %v", err)
	}
	if n := s.dials.Load(); n != 0 {
		t.Errorf("%d dials", n)
	}
}

// Without the relay nothing passes.
func TestClosed(t *testing.T) {
	s := newSetting(t, 1, usual(), nil)
	s.echoServer("tcp", join(outside4, 1000))
	c, err := s.Machines[0].Dial("tcp", join(outside4, 1000), soon)
	if err != nil {
		t.Fatal(err)
	}
	s.relay.Close()
	select {
	case <-s.relay.Done():
	default:
		t.Error("not done")
	}
	c.SetDeadline(time.Now().Add(soon))
	if _, err := io.ReadAll(c); err == nil || timedOut(err) {
		t.Errorf("an open connection lives on: %v", err)
	}
	if _, err := s.Machines[0].Dial("tcp", join(outside4, 1000), brief); !timedOut(err) {
		t.Errorf("a new one: %v", err)
	}
}

func TestRelayAsUser(t *testing.T) { sealtest.RunAsUser(t, "^Test(TCP|UDP|ICMP)$") }
