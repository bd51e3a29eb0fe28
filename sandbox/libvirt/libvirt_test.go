package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bj/sandbox"
	"bj/sandbox/image"
	"bj/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	if sandboxtest.Main(os.Args) {
		return
	}
	if handled, err := Main(os.Args); handled {
		if err != nil {
			fmt.Fprintln(os.Stderr, "bj: error:", err)
			os.Exit(3)
		}
		return
	}
	code := m.Run()
	lab.close()
	os.Exit(code)
}

// lab is what all tests of this program share: libvirt, the agent, and a
// template that is booted once.
var lab laboratory

type laboratory struct {
	libvirt, agent, template sync.Once
	daemons                  []*exec.Cmd // those that were started for the tests
	dir                      string      // of the agent and the template
	saved                    string      // folder of the template of spec's machines
	booted, filled           time.Duration
}

func (l *laboratory) close() {
	for _, d := range l.daemons {
		d.Process.Signal(os.Interrupt)
		timer := time.AfterFunc(10*time.Second, func() { d.Process.Kill() })
		d.Wait()
		timer.Stop()
	}
	os.RemoveAll(l.dir)
}

// folder is where the lab keeps files; QEMU must be able to go through it.
func (l *laboratory) folder(t testing.TB) string {
	t.Helper()
	if l.dir == "" {
		dir, err := os.MkdirTemp("", "bj-libvirt-")
		if err != nil {
			t.Fatal(err)
		}
		l.dir = dir
	}
	return l.dir
}

// startLibvirt starts libvirt's daemons where they do not run.
func startLibvirt(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("virtual machines need root")
	}
	lab.libvirt.Do(func() {
		if l, err := connect(t.Context(), DefaultURI); err == nil {
			l.Disconnect()
			return
		}
		lab.start(t, "virtlogd")
		lab.start(t, "libvirtd")
	})
	awaitLibvirt(t)
}

// start starts a daemon until the end of all tests.
func (l *laboratory) start(t testing.TB, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("the tests need %s: apt-get install libvirt-daemon-system qemu-system-x86", name)
	}
	cmd := exec.Command(path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.daemons = append(l.daemons, cmd)
}

func awaitLibvirt(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		l, err := connect(ctx, DefaultURI)
		if err == nil {
			l.Disconnect()
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("waiting for libvirtd: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// agentEnv names the agent, for the tests' own children.
const agentEnv = "BJ_TEST_AGENT"

// provider returns one whose agent is bj, built for these tests.
func provider(t testing.TB) *Provider {
	t.Helper()
	lab.agent.Do(func() {
		if os.Getenv(agentEnv) != "" {
			return
		}
		agent := filepath.Join(lab.folder(t), "bj")
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", agent, "bj/cmd/bj")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building the agent: %v\n%s", err, out)
		}
		os.Setenv(agentEnv, agent)
	})
	return New(Options{Agent: os.Getenv(agentEnv), Images: &image.Store{Dir: filepath.Join(cacheDir(t), "tools"), Virtual: true}, Notice: func(s string) { fmt.Fprintln(os.Stderr, s) }})
}

// cacheDir is bj's, which the tests share with it: images take long.
func cacheDir(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("BJ_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "bj")
}

// warm returns what leases n machines of spec from the template.
func warm(t testing.TB, n int) map[string]string {
	t.Helper()
	from := map[string]string{}
	for _, m := range spec(n).Machines {
		from[m.Name] = template(t)
	}
	return from
}

// template returns the folder of the template of spec's machines. It is made
// once, after a machine that was booted from nothing was found to be whole.
func template(t testing.TB) string {
	t.Helper()
	startLibvirt(t)
	lab.template.Do(func() {
		p := provider(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		s := spec(1)
		// The image and the notice about KVM come before what is measured.
		if _, err := p.Template(ctx, s.Machines[0]); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		env, err := p.Lease(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		lab.booted = time.Since(start)
		err = env.Seal(ctx, sandbox.Policy{})
		if err == nil {
			holds(t, env)
			isWhole(t, env.Machines()[0])
		}
		if err := errors.Join(err, env.Release(context.WithoutCancel(ctx))); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, p, env.Name())
		tpl, err := p.Template(ctx, s.Machines[0])
		if err != nil || tpl.Key == "" {
			t.Fatalf("after a lease the template has the key %q, %v", tpl.Key, err)
		}
		dir := filepath.Join(lab.folder(t), "template")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if err := p.Fill(ctx, tpl, dir); err != nil {
			t.Fatal(err)
		}
		lab.filled, lab.saved = time.Since(start), dir
	})
	if lab.saved == "" {
		t.Fatal("there is no template: an earlier test says why")
	}
	return lab.saved
}

// isWhole fails if a machine is not what spec asks for.
func isWhole(t testing.TB, m sandbox.Machine) {
	t.Helper()
	if out, code := sh(t, m, `test "$(cat /etc/greeting)" = hello; test "$(stat -c %a /etc/greeting)" = 640; test "$(hostname)" = `+m.Name()+`; grep -q m-0 /etc/hosts; ! ls /etc/ssh/ssh_host_* 2>/dev/null; echo whole`); code != 0 || out != "whole\n" {
		t.Errorf("%s is not what was asked for: %d %s", m.Name(), code, out)
	}
}

// holds fails if a canary got out.
func holds(t testing.TB, env sandbox.Environment) {
	t.Helper()
	list, err := env.Canaries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if !c.Held {
			t.Errorf("%s: %s: %s", c.Machine, c.Probe, c.Detail)
		}
	}
	if len(list) < 10*len(env.Machines()) {
		t.Errorf("only %d canaries", len(list))
	}
}

func spec(n int) sandbox.Spec {
	s := sandbox.Spec{Owner: "//libvirt:test"}
	for i := range n {
		s.Machines = append(s.Machines, sandbox.MachineSpec{
			Name: fmt.Sprintf("m-%d", i), CPUs: 1, Memory: 128 << 20, Disk: 64 << 20,
			V4: netip.AddrFrom4([4]byte{198, 18, 0, byte(10 + i)}), V6: netip.AddrFrom16([16]byte{0xfd, 0x62, 0, 0x6a, 15: byte(0x10 + i)}),
			Files: []sandbox.File{{Path: "/etc/greeting", Mode: 0o640, Content: []byte("hello\n")}},
		})
	}
	return s
}

// sh runs a script as root, and returns what it wrote and its exit code.
func sh(t testing.TB, m sandbox.Machine, script string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out strings.Builder
	proc, err := m.Start(ctx, sandbox.Command{Script: script, Unit: "test"}, func(_ sandbox.Stream, b []byte) { out.Write(b) })
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	exit, err := proc.Wait(ctx)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out.String(), exit.Code
}

// nothingLeft fails if something of a lease is there still.
func nothingLeft(t testing.TB, p *Provider, lease string) {
	t.Helper()
	for _, what := range left(t, p, lease) {
		t.Errorf("left behind: %s", what)
	}
}

func TestMachines(t *testing.T) {
	from := warm(t, 2)
	p := provider(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	env, err := p.LeaseFrom(ctx, spec(2), from)
	if err != nil {
		t.Fatal(err)
	}
	defer nothingLeft(t, p, env.Name())
	defer func() {
		if err := env.Release(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	m := env.Machines()
	if _, err := m[0].Start(ctx, sandbox.Command{Script: "true", Unit: "early"}, nil); err == nil {
		t.Error("a command was started before the seal held")
	}
	policy := sandbox.Policy{Internal: []sandbox.Ports{{Protocol: "tcp", First: 7000, Last: 7000}}}
	if err := env.Seal(ctx, policy); err != nil {
		t.Fatal(err)
	}
	holds(t, env)
	isWhole(t, m[0])
	isWhole(t, m[1])
	// No device of a machine leads to the host but its link, which the seal judges:
	// it has a link, disks, serial ports and a source of random bytes (no vsock, no
	// shared folder), and of the ports only bj's, which are taken.
	out, code := sh(t, m[0], `cat /sys/bus/virtio/devices/*/device | sort -u; cat /sys/class/virtio-ports/*/name | sort; ls -d /dev/vsock /dev/vhost* /sys/class/net/* 2>/dev/null || true
for port in /dev/vport*; do (echo x > $port) 2>/dev/null && echo wrote to $port; done; grep -cw vsock /proc/net/protocols`)
	if want := "0x0001\n0x0002\n0x0003\n0x0004\n" + agentPort + "\n" + controlPort + "\n/sys/class/net/eth0\n/sys/class/net/lo\n0\n"; out != want {
		t.Errorf("a machine's devices are\n%s, not\n%s (%d)", out, want, code)
	}
	// What is open is, from machine to machine, and nothing beside it.
	if out, code := sh(t, m[1], "(echo found | timeout 60 nc -l -p 7000) >/dev/null 2>&1 & (timeout 60 nc -l -p 9000) >/dev/null 2>&1 & sleep 1"); code != 0 {
		t.Fatalf("listening: %s", out)
	}
	if out, _ := sh(t, m[0], "timeout 10 nc -w 5 m-1 7000 </dev/null || true"); out != "found\n" {
		t.Errorf("the open port says %q", out)
	}
	// Root of a machine takes down whatever it finds, and is nobody else.
	attacks := `set +e
ip addr flush dev eth0 2>/dev/null; ip addr add 198.18.0.66/32 dev eth0
ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:66; ip link set eth0 up
ip route replace default dev eth0 onlink 2>/dev/null
timeout 3 nc -w 2 198.18.0.11 9000 </dev/null && echo reached a closed port
timeout 3 nc -w 2 198.18.0.11 7000 </dev/null && echo reached a port under another address
ping -c 1 -W 1 198.18.0.11 >/dev/null 2>&1 && echo pinged
python3 - <<'E' || true
import socket, struct
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(("eth0", 0))
for kind in (b"\x08\x06", b"\x88\xcc", b"\x88\xb5"):
    s.send(b"\xff" * 6 + b"\x02\0\0\0\0\x66" + kind + b"\0" * 46)
ip = lambda c: struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, c, bytes([198, 18, 0, 66]), bytes([198, 18, 0, 11]))
c = sum(struct.unpack("!10H", ip(0))); c = ~((c & 0xffff) + (c >> 16)) & 0xffff
s.send(b"\x02\x62\x6a\x01\0\0" + b"\x02\0\0\0\0\x66" + b"\x08\0" + ip(c) + struct.pack("!HHHH", 7000, 7000, 8, 0) + b"\0" * 18)
E
true`
	out, _ = sh(t, m[0], attacks)
	if strings.Contains(out, "reached") || strings.Contains(out, "pinged") {
		t.Errorf("root of a machine got through: %s", out)
	}
	flows, err := env.Blocked(ctx)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range flows {
		seen[f.Machine+" "+f.Protocol] = true
		if f.Source.Addr() == netip.MustParseAddr("198.18.0.66") {
			seen["forged"] = true
		}
	}
	for _, want := range []string{"m-0 arp", "m-0 ether/0x88cc", "forged"} {
		if !seen[want] {
			t.Errorf("nobody saw %q being stopped: %v; the attacker says %s", want, seen, out)
		}
	}
	if err := m[1].Crash(ctx); err != nil {
		t.Error(err)
	}
	if _, err := env.Blocked(ctx); err != nil {
		t.Errorf("after a crash: %v", err)
	}
}

func TestPanicked(t *testing.T) {
	console := filepath.Join(t.TempDir(), "console")
	for _, c := range []struct{ text, want string }{
		{"[    1.0] booting\r\n", ""},
		{"Kernel panic - first\r\n" + strings.Repeat("x", 70<<10) + "\r\n[    2.5] Kernel panic - not syncing: Attempted to kill init!\r\nmore", "its console says: Kernel panic - not syncing: Attempted to kill init!"},
		{"[    2.5] Kernel panic - \xff\xfe", "its console says: Kernel panic - ?"},
	} {
		if err := os.WriteFile(console, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := panicked(console); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if got := panicked(console + ".none"); got != "" {
		t.Errorf("without a console: %q", got)
	}
}
