package libvirt

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"bj/sandbox"
	"bj/sandbox/image"
)

// ownerEnv makes this program an owner of an environment, who is killed.
const ownerEnv = "BJ_TEST_OWNER"

func TestMain(m *testing.M) {
	if handled, err := Main(os.Args); handled {
		if err != nil {
			fmt.Fprintln(os.Stderr, "bj: error:", err)
			os.Exit(3)
		}
		return
	}
	os.Exit(m.Run())
}

// startLibvirt starts libvirt's daemons where they do not run, for this test.
func startLibvirt(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("virtual machines need root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if l, err := connect(ctx, DefaultURI); err == nil {
		l.Disconnect()
		return
	}
	for _, name := range []string{"virtlogd", "libvirtd"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatalf("the tests need %s: apt-get install libvirt-daemon-system qemu-system-x86", name)
		}
		cmd := exec.Command(path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Signal(os.Interrupt)
			time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
			cmd.Wait()
		})
	}
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

// provider returns one whose agent is bj, built for this test.
func provider(t *testing.T) *Provider {
	t.Helper()
	agent := os.Getenv("BJ_TEST_AGENT")
	if agent == "" {
		agent = filepath.Join(t.TempDir(), "bj")
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", agent, "bj/cmd/bj")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building the agent: %v\n%s", err, out)
		}
		t.Setenv("BJ_TEST_AGENT", agent)
	}
	cache := os.Getenv("BJ_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(dir, "bj")
	}
	return New(Options{Agent: agent, Images: &image.Store{Dir: filepath.Join(cache, "tools"), Virtual: true}, Notice: func(s string) { fmt.Fprintln(os.Stderr, s) }})
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
func sh(t *testing.T, m sandbox.Machine, script string) (string, int) {
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
func nothingLeft(t *testing.T, p *Provider, lease string) {
	t.Helper()
	l, err := connect(t.Context(), p.opts.URI)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Disconnect()
	domains, _, err := l.ConnectListAllDomains(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range domains {
		if strings.HasPrefix(d.Name, lease) {
			t.Errorf("left behind: the domain %s", d.Name)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, lease) {
			t.Errorf("left behind: the link %s", l.Attrs().Name)
		}
	}
	for _, path := range []string{filepath.Join(p.opts.State, lease), p.files(lease)} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("left behind: %s", path)
		}
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), "guest="+lease+"-") {
			t.Errorf("left behind: the process %s", path)
		}
	}
}

func TestMachines(t *testing.T) {
	startLibvirt(t)
	p := provider(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	env, err := p.Lease(ctx, spec(2))
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
	canaries := func() {
		t.Helper()
		list, err := env.Canaries(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if !c.Held {
				t.Errorf("%s: %s: %s", c.Machine, c.Probe, c.Detail)
			}
		}
		if len(list) < 20 {
			t.Errorf("only %d canaries", len(list))
		}
	}
	canaries()
	if out, code := sh(t, m[0], `test "$(cat /etc/greeting)" = hello; test "$(stat -c %a /etc/greeting)" = 640; test "$(hostname)" = m-0; grep -q m-1 /etc/hosts; echo whole`); code != 0 || out != "whole\n" {
		t.Errorf("the machine is not what was asked for: %d %s", code, out)
	}
	id0, _ := sh(t, m[0], "cat /etc/machine-id")
	if id1, _ := sh(t, m[1], "cat /etc/machine-id"); id0 == id1 || len(id0) != 33 {
		t.Errorf("machine ids %q and %q", id0, id1)
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
	out, _ := sh(t, m[0], attacks)
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

// An owner leases and waits to be killed.
func TestOwner(t *testing.T) {
	if os.Getenv(ownerEnv) == "" {
		t.Skip("run by TestKilled")
	}
	env, err := provider(t).Lease(t.Context(), spec(1))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("leased %s\n", env.Name())
	select {}
}

func TestKilled(t *testing.T) {
	startLibvirt(t)
	p := provider(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOwner$", "-test.v")
	cmd.Env = append(os.Environ(), ownerEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	timer := time.AfterFunc(5*time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	lease := ""
	for lines := bufio.NewScanner(out); lease == "" && lines.Scan(); {
		lease, _ = strings.CutPrefix(lines.Text(), "leased ")
		if !strings.HasPrefix(lease, "bj-") {
			lease = ""
		}
	}
	if lease == "" {
		t.Fatal("the owner leased nothing")
	}
	if removed, err := p.Reap(t.Context()); err != nil || len(removed) > 0 {
		t.Fatalf("reaping what lives: %v %v", removed, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	deadline := time.Now().Add(time.Minute)
	for {
		// The gateway holds the lease's lock until the kernel has ended it.
		removed, err := p.Reap(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(removed) == 1 && removed[0] == lease {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("reaped %v, not %s", removed, lease)
		}
		time.Sleep(10 * time.Millisecond)
	}
	nothingLeft(t, p, lease)
}
