package main

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"bj/run/event"
	"bj/sandbox"
)

// A hiddenNeed is a recipe with one dependency that its conditions do not name.
type hiddenNeed struct {
	name     string
	before   string // steps of the strategy that come first, as Starlark
	run      string // script of the step that needs it
	allowed  string // a condition that it has
	step     string // whose step the attempt belongs to, "work" if empty
	unit     string // of the process, "work" if empty
	process  string // in its arguments
	protocol string
	address  string
	port     int
	question string // the name that was asked for
	service  string // "" where nobody owns it
	allow    string
}

// wraps are the ways in which a program is started: by the step's shell, below
// others, in the background, and after an attempt that does not matter.
var wraps = []string{
	"%s",
	"sh -c 'sh -c \"%s; exit \\$?\"; exit $?'",
	"%s & wait $!",
	"timeout 20 setsid -w %s",
	"net 1 tcp 192.0.2.11 8003 || true; %s",
}

// hiddenRecipes generates them: every kind, with varying ports, owners and ways
// to be started.
func hiddenRecipes() []hiddenNeed {
	var out []hiddenNeed
	add := func(h hiddenNeed) {
		h.step, h.unit, h.process = cmp.Or(h.step, "work"), cmp.Or(h.unit, "work"), cmp.Or(h.process, "net")
		h.name = fmt.Sprintf("%s_%d", h.name, len(out))
		out = append(out, h)
	}
	literal := func(proto, host string, port int) string {
		return fmt.Sprintf(`allow("%s://%s")`, proto, net.JoinHostPort(host, fmt.Sprint(port)))
	}
	type target struct {
		host           string
		port           int
		service, allow string
	}
	targets := []target{
		{"192.0.2.10", 7000, "store", `allow("store", "read")`}, {"192.0.2.10", 7001, "store", `allow("store", "write")`},
		{"192.0.2.11", 7000, "", ""}, {"198.51.100.2", 8000, "net", `allow("net")`},
		{"2001:db8:1::10", 7000, "six", `allow("six")`}, {"2001:db8:1::11", 8001, "", ""},
	}
	for _, proto := range []string{"tcp", "udp"} {
		for i, x := range targets {
			for j, wrap := range wraps {
				h := hiddenNeed{name: proto, protocol: proto, address: x.host, port: x.port, service: x.service, allow: x.allow}
				if h.service == "" {
					h.allow = literal(proto, x.host, x.port)
				}
				if (i+j)%2 == 1 { // beside an endpoint of the same host that is allowed
					h.allowed = literal(proto, x.host, 8002)
				}
				h.run = fmt.Sprintf(wrap, fmt.Sprintf("net 2 %s %s %d", proto, x.host, x.port))
				add(h)
			}
		}
	}
	for i, wrap := range wraps {
		for _, host := range []string{"127.0.0.1", "::1"} {
			port := 4000 + i
			add(hiddenNeed{name: "loopback", protocol: "tcp", address: host, port: port, allow: literal("tcp", host, port),
				before: fmt.Sprintf("step(\"serve\", daemon = True, unit = \"serve\", expect = \"serving\", run = \"exec net serve tcp %s %d\"), ", host, port),
				run:    fmt.Sprintf(wrap, fmt.Sprintf("net 2 tcp %s %d", host, port))})
		}
	}
	for i, x := range targets {
		for _, loop := range []string{
			"(setsid sh -c 'while ! net 1 %[1]s %[2]s %[3]d; do sleep 0.1; done; touch /root/got; sleep 100' >/dev/null 2>&1 &); sleep 1000",
			"sh -c 'net 8 %[1]s %[2]s %[3]d && touch /root/got; exec sleep 1000' & wait",
		} {
			proto := []string{"tcp", "udp"}[i%2]
			h := hiddenNeed{name: "grandchild", protocol: proto, address: x.host, port: x.port, service: x.service, allow: x.allow, step: "serve", unit: "server",
				before: fmt.Sprintf("step(\"serve\", daemon = True, unit = \"server\", run = %q), ", fmt.Sprintf(loop, proto, x.host, x.port)),
				run:    "for i in $(seq 25); do test -e /root/got && exit 0; sleep 0.2; done; exit 1"}
			if h.service == "" {
				h.allow = literal(proto, x.host, x.port)
			}
			add(h)
		}
	}
	for i, wrap := range wraps {
		// A name that leads to an address which is allowed.
		name := fmt.Sprintf("n%d.app.lab.internal", i)
		add(hiddenNeed{name: "name", protocol: "dns", question: name, service: "names", allow: `allow("names")`, allowed: `allow("tcp://192.0.2.10:7000")`,
			run: fmt.Sprintf(wrap, "net 2 tcp "+name+" 7000")})
		name = fmt.Sprintf("n%d.other.internal", i)
		add(hiddenNeed{name: "unowned_name", protocol: "dns", question: name, allow: fmt.Sprintf(`allow("dns://%s")`, name), allowed: `allow("tcp://192.0.2.10:7000")`,
			run: fmt.Sprintf(wrap, "net 2 tcp "+name+" 7000")})
		// A name and where it leads, both of one service.
		add(hiddenNeed{name: "service_name", protocol: "dns", question: "shop.lab.internal", service: "shop", allow: `allow("shop")`,
			run: fmt.Sprintf(wrap, "net 2 tcp shop.lab.internal 7000")})
		add(hiddenNeed{name: "socket", protocol: "unix", address: "/run/daemon.sock", allow: `allow("unix:///run/daemon.sock")`,
			run: fmt.Sprintf(wrap, "net unix /run/daemon.sock")})
	}
	// Beside much that does not matter: in the background, in another thread's
	// stead, and of a daemon.
	noise := "(while true; do net 1 udp 192.0.2.11 8003; net 1 tcp 198.51.100.1 8003; done >/dev/null 2>&1 &); sleep 0.5; "
	add(hiddenNeed{name: "noise_beside", protocol: "tcp", address: "192.0.2.10", port: 7000, service: "store", allow: `allow("store", "read")`, run: noise + "net 3 tcp 192.0.2.10 7000"})
	add(hiddenNeed{name: "noise_of_a_daemon", protocol: "tcp", address: "192.0.2.10", port: 7001, service: "store", allow: `allow("store", "write")`, step: "serve", unit: "server",
		before: fmt.Sprintf("step(\"telemetry\", daemon = True, run = %q), step(\"serve\", daemon = True, unit = \"server\", run = %q), ",
			"while true; do net 1 tcp 198.51.100.1 8003 || true; done", "until net 1 tcp 192.0.2.10 7001; do sleep 0.1; done; touch /root/got; sleep 1000"),
		run: "for i in $(seq 25); do test -e /root/got && exit 0; sleep 0.2; done; exit 1"})
	// Of both loopback addresses, the one where somebody listens.
	for _, host := range []string{"127.0.0.1", "::1"} {
		add(hiddenNeed{name: "localhost", protocol: "tcp", address: host, port: 4100, allow: literal("tcp", host, 4100),
			before: fmt.Sprintf("step(\"serve\", daemon = True, unit = \"serve\", expect = \"serving\", run = \"exec net serve tcp %s 4100\"), ", host),
			run:    "net 4 tcp ::1 4100 || net 4 tcp 127.0.0.1 4100 || net 1 tcp ::1 4100"})
	}
	// The same socket by another way.
	add(hiddenNeed{name: "linked_socket", protocol: "unix", address: "/run/daemon.sock", allow: `allow("unix:///run/daemon.sock")`, run: "net unix /var/run/daemon.sock"})
	add(hiddenNeed{name: "declared_socket", protocol: "unix", address: "/run/cache/x.sock", service: "cache", allow: `allow("cache")`,
		run: "net unix /run/cache/x.sock"})
	return out
}

// hiddenServices own what hiddenRecipes want.
const hiddenServices = `"""Hidden dependencies."""

load("//lib:trial.star", "NET")

m = hardware("m")

service(name = "test", owner = "x")
service(name = "store", owner = "x", endpoints = {
    "read": ["tcp://192.0.2.10:7000", "udp://192.0.2.10:7000"],
    "write": ["tcp://192.0.2.10:7001", "udp://192.0.2.10:7001"],
})
service(name = "net", owner = "x", endpoints = {"default": ["tcp://198.51.100.0/24:8000", "udp://198.51.100.0/24:8000"]})
service(name = "six", owner = "x", endpoints = {"default": ["tcp://[2001:db8:1::10]:7000", "udp://[2001:db8:1::10]:7000"]})
service(name = "names", owner = "x", endpoints = {"default": ["udp://192.0.2.11:53", "dns://*.app.lab.internal"]})
service(name = "shop", owner = "x", endpoints = {"default": ["tcp://198.51.100.1:7000", "dns://shop.lab.internal"]})
service(name = "cache", owner = "x", endpoints = {"default": ["unix:///run/cache/x.sock"]})

`

// source writes a recipe, with its condition pasted in or not.
func (h *hiddenNeed) source(pasted bool) string {
	var conditions []string
	if h.allowed != "" {
		conditions = append(conditions, h.allowed)
	}
	if pasted {
		conditions = append(conditions, h.allow)
	}
	return fmt.Sprintf(`recipe(
    name = %q,
    service = "test",
    hardware = [m],
    tooling = [NET],
    conditions = [%s],
    strategy = [%sstep("work", unit = "work", within = "20s", run = %q), step("finish", run = "touch /root/finished")],
    validation = [validate("finished", run = "test -e /root/finished", within = "20s", every = "100ms")],
)
`, h.name, strings.Join(conditions, ", "), h.before, h.run)
}

// TestBlame generates recipes with a hidden dependency each: the process, the
// step, the destination and its owner must be the right ones, and the line that
// is suggested, pasted in, makes it recover.
func TestBlame(t *testing.T) {
	recipes := hiddenRecipes()
	t.Logf("%d recipes", len(recipes))
	if len(recipes) < 100 {
		t.Errorf("%d recipes are too few", len(recipes))
	}
	t.Run("root", func(t *testing.T) { blameAll(t, recipes, true) })
	if *inMachines {
		return // which need root
	}
	t.Run("user", func(t *testing.T) { // the same but for how groups are told apart
		var some []hiddenNeed
		for i, h := range recipes {
			// The lab's host resolves names through a mount, with which an ordinary
			// user could not lay anything over /etc.
			if i%5 == 0 && !strings.Contains(h.name, "e_name") && !strings.HasPrefix(h.name, "unowned") {
				some = append(some, h)
			}
		}
		blameAll(t, some, false)
	})
}

// blameAll runs recipes as they are, and with what is suggested.
func blameAll(t *testing.T, recipes []hiddenNeed, asRoot bool) {
	l := newLab(t)
	l.names(asRoot)
	l.startLibvirt()
	blamed := runHidden(t, l, recipes, asRoot, false)
	pasted := runHidden(t, l, recipes, asRoot, true)
	right := 0
	for _, h := range recipes {
		good := true
		wrong := func(format string, args ...any) {
			good = false
			t.Errorf("%s: "+format, append([]any{h.name}, args...)...)
		}
		h.check(blamed.of("//:"+h.name), wrong)
		v := verdictOf(pasted.of("//:" + h.name))
		switch {
		case v == nil:
			wrong("it did not run with %s", h.allow)
		case h.address == "/run/cache/x.sock": // which nobody serves in the lab
		case *inMachines && h.protocol == "unix": // of this host's kernel
			if v.Verdict != event.Errored || code(v) != string(sandbox.CodeLimits) {
				wrong("with %s: %s: %s", h.allow, v.Verdict, v.Reason)
			}
		case v.Verdict != event.Recovered:
			wrong("with %s: %s: %s", h.allow, v.Verdict, v.Reason)
		}
		if good {
			right++
		}
	}
	t.Logf("%d of %d were blamed right", right, len(recipes))
}

func verdictOf(events []event.Event) *event.Verdict {
	for _, e := range events {
		if e.Event == event.VerdictGiven {
			return e.Verdict
		}
	}
	return nil
}

// check compares what was blamed.
func (h *hiddenNeed) check(events []event.Event, wrong func(string, ...any)) {
	v := verdictOf(events)
	if v == nil || v.Verdict != event.NotRecovered || v.Failed == nil || v.Failed.Title != "work" {
		wrong("the verdict is %+v", v)
		return
	}
	// The cause is told once more, when it is known to have mattered.
	var cause *event.Blocked
	var step string
	for _, e := range events {
		if e.Event == event.BlockedSeen && e.Blocked.Mattered != nil && *e.Blocked.Mattered {
			cause = e.Blocked
		}
	}
	if cause == nil {
		wrong("nothing is blamed: %s", v.Reason)
		return
	}
	for _, e := range events {
		if e.Event == event.BlockedSeen && e.Blocked.Allow == cause.Allow && step == "" {
			step = e.Step
		}
	}
	name, service := "", ""
	if cause.Destination.Name != nil {
		name = *cause.Destination.Name
	}
	if cause.Service != nil {
		service = *cause.Service
	}
	if cause.Protocol != h.protocol || h.address != "" && (cause.Destination.Address != h.address || cause.Destination.Port != h.port) || strings.TrimSuffix(name, ".") != h.question || service != h.service {
		wrong("blamed %+v (name %q, service %q)", cause, name, service)
	}
	if cause.Allow != h.allow || !strings.Contains(v.Reason, h.allow+" would allow it") {
		wrong("the line is %s, not %s: %s", cause.Allow, h.allow, v.Reason)
	}
	// A daemon's attempt may be seen while it starts, or while what needs it runs.
	if step != h.step && step != "work" {
		wrong("it was during %q", step)
	}
	if p := cause.Process; p == nil || p.PID == 0 || p.Unit != h.unit || !slices.ContainsFunc(p.Argv, func(a string) bool { return strings.Contains(a, h.process) }) || !strings.Contains(p.Exe, "perl") {
		wrong("the process is %+v", p)
	}
	if cause.First.IsZero() || cause.Last.Before(cause.First) {
		wrong("first %s, last %s", cause.First, cause.Last)
	}
}

// runHidden runs recipes in a workspace of their own.
func runHidden(t *testing.T, l *lab, recipes []hiddenNeed, asRoot, pasted bool) *ran {
	t.Helper()
	dir := openDir(t)
	var b strings.Builder
	b.WriteString(hiddenServices)
	for _, h := range recipes {
		b.WriteString(h.source(pasted))
	}
	files := map[string]string{"bj.star": "", "hidden.star": b.String()}
	for _, name := range []string{"trial.star", "net.pl"} {
		data, err := os.ReadFile(filepath.Join("testdata", "verdicts", "lib", name))
		if err != nil {
			t.Fatal(err)
		}
		files["lib/"+name] = string(data)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := bjTest(t, l, dir, asRoot, "--jobs", jobs(8), "//:all")
	if len(r.events) < len(recipes) {
		t.Fatalf("%d events\n%s", len(r.events), r.stderr)
	}
	return r
}

// names makes the lab's production answer for names, and the lab's host ask
// there if host is set.
func (l *lab) names(host bool) {
	l.t.Helper()
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		for _, x := range q.Question {
			to := netip.MustParseAddr("192.0.2.10")
			if strings.HasPrefix(x.Name, "shop.") {
				to = netip.MustParseAddr("198.51.100.1")
			}
			if x.Qtype == dns.TypeA && strings.HasSuffix(x.Name, ".internal.") {
				m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: x.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: to.AsSlice()})
			}
		}
		w.WriteMsg(m)
	})
	l.do(func() {
		udp, err := net.ListenPacket("udp", "192.0.2.11:53")
		l.must("answering for names", err)
		tcp, err := net.Listen("tcp", "192.0.2.11:53")
		l.must("answering for names", err)
		if host {
			path := filepath.Join(openDir(l.t), "resolv.conf")
			l.must("writing resolv.conf", os.WriteFile(path, []byte("nameserver 192.0.2.11\n"), 0o644))
			target, err := filepath.EvalSymlinks("/etc/resolv.conf")
			l.must("finding resolv.conf", err)
			l.must("mounting resolv.conf", unix.Mount(path, target, "", unix.MS_BIND, ""))
			l.before = l.state()
		}
		for _, s := range []*dns.Server{{PacketConn: udp, Handler: answer}, {Listener: tcp, Handler: answer}} {
			go s.ActivateAndServe()
			l.t.Cleanup(func() { s.Shutdown() })
		}
	})
	if l.t.Failed() {
		l.t.FailNow()
	}
}
