package run

import (
	"net/netip"
	"strings"
	"testing"
	"time"

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

// TestLikeliest holds which of several attempts a failure is blamed on.
func TestLikeliest(t *testing.T) {
	start := time.Now()
	s := &site{plan: &Plan{fleet: &fleet.Fleet{Services: []*fleet.Service{service("web", "default", "tcp://10.0.0.5:80"), service("metrics", "default", "tcp://10.0.0.6:80")}}}}
	// port first last [running] [idle] [unit=u] [on=m] [to=address] [udp]
	flow := func(text string) sandbox.Flow {
		words := strings.Fields(text)
		at := func(i int) time.Time {
			d, err := time.ParseDuration(words[i])
			if err != nil {
				t.Fatal(err)
			}
			return start.Add(d)
		}
		x := sandbox.Flow{Machine: "m", Protocol: "tcp", Origin: &sandbox.Origin{Exe: words[0], Unit: "work"}, First: at(1), Last: at(2)}
		to := "192.0.2.1:80"
		for _, w := range words[3:] {
			switch key, value, _ := strings.Cut(w, "="); key {
			case "running":
				x.Running = true
			case "idle":
				x.Idle = true
			case "unit":
				x.Origin.Unit = value
			case "on":
				x.Machine = value
			case "to":
				to = value
			case "udp":
				x.Protocol = key
			}
		}
		x.Destination = netip.MustParseAddrPort(to)
		return x
	}
	ended := failure{kind: kindStep, unit: "work", machine: "m", since: start, ended: true}
	killed := failure{kind: kindStep, unit: "work", machine: "m", since: start}
	for _, c := range []struct {
		name  string
		f     failure
		flows []string
		want  string
	}{
		{"the last after those that were tolerated", ended, []string{"noise 1s 2s to=10.0.0.6:80", "dep 3s 4s"}, "dep"},
		{"what runs on beside it", ended, []string{"noise 1s 9s running", "dep 3s 4s"}, "dep"},
		{"what runs on beside it and began later", ended, []string{"dep 1s 7s", "noise 2s 9s running"}, "dep"},
		{"a worker that the step left, after something tolerated", ended, []string{"noise 1s 2s", "dep 3s 9s running"}, "dep"},
		{"another thread's of the same process", ended, []string{"noise 1s 9s", "dep 2s 5s"}, "dep"},
		{"that of a service, of many at once", ended, []string{"one 1s 9s", "dep 1.1s 9s to=10.0.0.5:80", "two 1.2s 1.2s", "three 1s 9s udp"}, "dep"},
		{"that of a service, of two that go on", ended, []string{"dep 1s 9s to=10.0.0.5:80", "noise 1.2s 9s"}, "dep"},
		{"datagrams that nobody waits for", ended, []string{"dep 1s 9s", "noise 1.2s 9s udp"}, "dep"},
		{"of the command, not of a daemon", ended, []string{"dep 1s 4s", "noise 2s 9s unit=telemetry to=10.0.0.6:80 running"}, "dep"},
		{"of the machine on which it failed", ended, []string{"dep 1s 4s", "noise 2s 9s on=other"}, "dep"},
		{"where somebody listens", ended, []string{"six 1s 4s to=[::1]:80 idle", "dep 1.2s 4s to=127.0.0.1:80", "last 1.3s 4s to=127.0.0.2:80 idle"}, "dep"},
		{"a daemon that goes on, killed by its limit", killed, []string{"noise 1s 1s", "dep 2s 9s running"}, "dep"},
		{"since the failure began", ended, []string{"noise -9s -8s to=10.0.0.6:80", "dep 1s 2s unit=other"}, "dep"},
		{"two daemons, of which one wants a service", killed, []string{"noise 1s 9s unit=a running", "dep 2s 9s unit=b running to=10.0.0.5:80"}, "dep"},
	} {
		var flows []sandbox.Flow
		for _, text := range c.flows {
			flows = append(flows, flow(text))
		}
		if got := s.likeliest(flows, &c.f)[0].Origin.Exe; got != c.want {
			t.Errorf("%s: it is %s, not %s", c.name, got, c.want)
		}
	}
}

// What a command only looked for is found in its words.
func TestLacking(t *testing.T) {
	f := &fleet.Fleet{Services: []*fleet.Service{
		service("own", "default", "unix:///run/own.sock"),
		service("cache", "default", "unix:///run/cache.sock"),
		service("codec", "a", "lib:///usr/lib/libcodec.so*", "b", "lib:///usr/lib/libother.so"),
	}}
	for words, want := range map[string]string{
		"test -S /run/cache.sock": `/run/cache.sock is of cache, and absent unless it is allowed: allow("cache")`,
		"error while loading shared libraries: libcodec.so.1: cannot open": `/usr/lib/libcodec.so* is of codec, and absent unless it is allowed: allow("codec", "a")`,
		"test -S /run/own.sock":           "",
		"libother.so: no such file":       "",
		"test -S /run/somebody-else.sock": "",
	} {
		r := &fleet.Recipe{Service: "own", Conditions: []fleet.Condition{allow("codec", "b")}}
		if got := lacking(f, r, words); got != want {
			t.Errorf("%s: %q, want %q", words, got, want)
		}
	}
}
