package run

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestHostDial(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	to := l.Addr().(*net.TCPAddr).AddrPort()
	c, err := hostDial(ctx, "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.Close()
	if c, err := hostDial(ctx, "tcp", to); err == nil {
		c.Close()
		t.Error("a closed port answers")
	}
}

// Where the host lets nobody have ping sockets, the error says what mends it.
func TestDialPing(t *testing.T) {
	for _, a := range []string{"127.0.0.1", "::1"} {
		c, err := dialPing(netip.MustParseAddr(a))
		if err != nil {
			if !strings.Contains(err.Error(), "ping") {
				t.Errorf("%s: %v", a, err)
			}
			continue
		}
		defer c.Close()
		f, err := c.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if a != "127.0.0.1" {
			continue
		}
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte{8, 0, 0, 0, 0, 0, 0, 1, 'b', 'j'}); err != nil {
			t.Fatal(err)
		}
		var reply [64]byte
		if n, err := c.Read(reply[:]); err != nil || n != 10 || reply[0] != 0 || string(reply[8:10]) != "bj" {
			t.Errorf("reply of %d bytes: %v, %v", n, reply[:n], err)
		}
	}
}
