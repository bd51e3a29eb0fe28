package run

import (
	"net/netip"
	"testing"

	"bj/fleet"
	"bj/sandbox"
)

func TestBlame(t *testing.T) {
	f := &fleet.Fleet{Services: []*fleet.Service{
		service("a-net", "default", "tcp://10.0.0.0/8:1-65535"),
		service("b-web", "read", "http://10.0.0.5", "write", "tcp://10.0.0.5:81-90", "admin", "tcp://10.0.0.5:85"),
		service("c-tie", "default", "tcp://10.0.0.7:1"),
		service("d-tie", "default", "tcp://10.0.0.7:1"),
		service("e-ping", "default", "icmp://10.0.0.0/24"),
		service("f-six", "default", "udp://[2001:db8::/32]:53"),
	}}
	for _, c := range []struct{ protocol, to, service, allow string }{
		{"tcp", "10.0.0.5:80", "b-web", `allow("b-web", "read")`},
		{"tcp", "10.0.0.5:82", "b-web", `allow("b-web", "write")`},
		{"tcp", "10.0.0.5:85", "b-web", `allow("b-web", "admin")`},
		{"tcp", "10.0.0.5:99", "a-net", `allow("a-net")`},
		{"tcp", "10.0.0.7:1", "c-tie", `allow("c-tie")`},
		{"udp", "10.0.0.5:80", "", `allow("udp://10.0.0.5:80")`},
		{"tcp", "192.0.2.1:443", "", `allow("tcp://192.0.2.1:443")`},
		{"tcp", "[::ffff:10.0.0.5]:80", "b-web", `allow("b-web", "read")`},
		{"icmp", "10.0.0.9:0", "e-ping", `allow("e-ping")`},
		{"icmp", "192.0.2.1:0", "", `allow("icmp://192.0.2.1")`},
		{"icmpv6", "[2001:db8::1]:0", "", `allow("icmp://[2001:db8::1]")`},
		{"udp", "[2001:db8::1]:53", "f-six", `allow("f-six")`},
		{"tcp", "[2001:db8::1]:53", "", `allow("tcp://[2001:db8::1]:53")`},
		{"tcp", "127.0.0.1:80", "", `allow("tcp://127.0.0.1:80")`},
		{"ip/132", "10.0.0.5:0", "", ""},
		{"arp", "", "", ""},
	} {
		flow := sandbox.Flow{Protocol: c.protocol, Count: 2}
		if c.to != "" {
			flow.Destination = netip.MustParseAddrPort(c.to)
		}
		b := blame(f, flow)
		service := ""
		if b.Service != nil {
			service = *b.Service
		}
		if service != c.service || b.Allow != c.allow || b.Count != 2 {
			t.Errorf("%s %s is blamed on %q, %s; want %q, %s", c.protocol, c.to, service, b.Allow, c.service, c.allow)
		}
		if c.allow != "" && c.service == "" { // the line is one that bj reads
			e, err := fleet.ParseEndpoint(c.allow[len(`allow("`) : len(c.allow)-2])
			if err != nil || e.URL == "" {
				t.Errorf("%s is no endpoint: %v", c.allow, err)
			}
		}
	}
}

func TestOwnersOfATie(t *testing.T) {
	f := &fleet.Fleet{Services: []*fleet.Service{service("c", "default", "tcp://10.0.0.7:1"), service("d", "x", "tcp://10.0.0.7:1", "y", "tcp://10.0.0.0/24:1")}}
	got := owners(f, *endpoint(t, "tcp://10.0.0.7:1"))
	if len(got) != 2 || got[0].String() != "c" || got[1].String() != "d/x" {
		t.Errorf("owners: %v", got)
	}
	if got := owners(f, *endpoint(t, "tcp://10.0.0.0/25:1")); len(got) != 1 || got[0].name != "y" {
		t.Errorf("owners of a part: %v", got)
	}
	if got := owners(f, *endpoint(t, "tcp://10.0.0.0/23:1")); len(got) != 0 {
		t.Errorf("owners of more: %v", got)
	}
}
