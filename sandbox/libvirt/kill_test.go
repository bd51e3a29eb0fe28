package libvirt

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// ownerEnv makes this program an owner of an environment: its value is the folder
// of the template that the machine starts from.
const ownerEnv = "BJ_TEST_OWNER"

// roundsEnv says how often each victim is killed; once if empty.
const roundsEnv = "BJ_TEST_ROUNDS"

// An owner leases a machine, seals it and uses it until it is lost, or until the
// owner itself is killed. It says how far it got.
func TestOwner(t *testing.T) {
	if os.Getenv(ownerEnv) == "" {
		t.Skip("run by TestKilled")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	env, err := provider(t).LeaseFrom(ctx, spec(1), map[string]string{"m-0": os.Getenv(ownerEnv)})
	if err != nil {
		t.Fatal(err)
	}
	e := env.(*environment)
	defer func() {
		if err := env.Release(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	fmt.Printf("leased %s gateway %d\n", env.Name(), e.gateway.cmd.Process.Pid)
	if err := env.Seal(ctx, sandbox.Policy{}); err != nil {
		t.Fatal(err)
	}
	id, code := sh(t, env.Machines()[0], "cat /etc/machine-id")
	fmt.Printf("uses %s code %d\n", strings.TrimSpace(id), code)
	if os.Getenv(ownerEnv+"_PANIC") != "" {
		// The agent is the machine's first process, whose end is the machine's.
		env.Machines()[0].Start(ctx, sandbox.Command{Script: "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger", Unit: "panic"}, func(sandbox.Stream, []byte) {})
	}
	select {
	case <-env.Machines()[0].Lost():
	case <-ctx.Done():
		t.Error("nothing was killed")
	}
}

// owner is a running TestOwner.
type owner struct {
	cmd     *exec.Cmd
	lines   chan string // what it says; closed at its end
	ended   chan struct{}
	lease   string
	gateway int
	machine string // its machine-id
}

func startOwner(t *testing.T, saved string, more ...string) *owner {
	t.Helper()
	o := &owner{cmd: exec.Command("/proc/self/exe", "-test.run=^TestOwner$", "-test.v"), lines: make(chan string, 1000), ended: make(chan struct{})}
	o.cmd.Env = append(append(os.Environ(), ownerEnv+"="+saved), more...)
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for in := bufio.NewScanner(out); in.Scan(); {
			o.lines <- in.Text()
		}
		o.cmd.Wait()
		close(o.lines)
		close(o.ended)
	}()
	t.Cleanup(func() { o.cmd.Process.Kill(); <-o.ended })
	return o
}

// toTheEnd is a word that no owner says.
const toTheEnd = "the end"

// follow reads what an owner says until it has got as far as word, or has ended.
func (o *owner) follow(t *testing.T, word string) bool {
	t.Helper()
	deadline := time.After(5 * time.Minute)
	for {
		select {
		case line, ok := <-o.lines:
			if !ok {
				return false
			}
			var code int
			fmt.Sscanf(line, "leased %s gateway %d", &o.lease, &o.gateway)
			fmt.Sscanf(line, "uses %s code %d", &o.machine, &code)
			if strings.HasPrefix(line, word+" ") {
				return true
			}
		case <-deadline:
			t.Fatalf("the owner does not get as far as %q", word)
		}
	}
}

// victims are what is killed, as kill -9 does.
var victims = map[string]func(t *testing.T, o *owner){
	"bj": func(t *testing.T, o *owner) { o.cmd.Process.Kill() },
	"emulator": func(t *testing.T, o *owner) {
		for _, pid := range processes("\x00guest=" + hubPrefix) {
			unix.Kill(pid, unix.SIGKILL)
		}
	},
	"gateway": func(t *testing.T, o *owner) {
		for _, pid := range processes("bj\x00" + hubCommand) {
			unix.Kill(pid, unix.SIGKILL)
		}
	},
	"libvirtd": func(t *testing.T, o *owner) {
		i := ownLibvirtd()
		lab.daemons[i].Process.Kill()
		lab.daemons[i].Wait()
		lab.daemons = slices.Delete(lab.daemons, i, i+1)
		lab.start(t, "libvirtd")
	},
}

// ownLibvirtd is the place of libvirtd among the daemons, -1 if it is not ours.
func ownLibvirtd() int {
	return slices.IndexFunc(lab.daemons, func(d *exec.Cmd) bool { return filepath.Base(d.Path) == "libvirtd" })
}

// hubPrefix begins the names of all that leases own.
const hubPrefix = "bj-"

// processes returns those whose command lines contain text.
func processes(text string) (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		data, err := os.ReadFile(path)
		if pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && perr == nil && strings.Contains(string(data), text) && !zombie(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// left is what leases have left on this host whose names begin so: of hubPrefix,
// whoever's they were.
func left(t testing.TB, p *Provider, lease string) (all []string) {
	t.Helper()
	l, err := connect(context.Background(), p.opts.URI) // at the end of a test, too
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
			all = append(all, "domain "+d.Name)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, lease) {
			all = append(all, "link "+l.Attrs().Name)
		}
	}
	for _, pid := range processes("\x00guest=" + lease) {
		all = append(all, fmt.Sprint("QEMU ", pid))
	}
	patterns := []string{p.opts.State + "/" + lease + "*", p.files(lease) + "*", "/run/libvirt/qemu/" + lease + "*", "/var/lib/libvirt/qemu/save/" + lease + "*", "/var/lib/libvirt/qemu/domain-*-" + lease + "*"}
	if lease == hubPrefix {
		// With the gateway go its namespaces, and all links and rules there. It does
		// not say whose it is.
		for _, pid := range processes("bj\x00" + hubCommand) {
			all = append(all, fmt.Sprint("gateway ", pid))
		}
		patterns = append(patterns, p.files("*"))
	}
	for _, pattern := range patterns {
		files, _ := filepath.Glob(pattern)
		all = append(all, files...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// TestKilled holds that whatever of a lease is killed, and whenever, leaves
// nothing after the next bj, and that no machine is leased twice.
func TestKilled(t *testing.T) {
	saved := template(t)
	p := provider(t)
	if found := left(t, p, hubPrefix); len(found) > 0 {
		t.Fatalf("before anything was killed there is: %v", found)
	}
	machines := map[string]string{} // machine-ids and leases that were handed out, and to whom
	note := func(what, round string) {
		if what == "" {
			return
		}
		if who, again := machines[what]; again {
			t.Errorf("%s: %s was handed out in %s already", round, what, who)
		}
		machines[what] = round
	}
	// gone waits until the next bj, and the next, has removed all.
	gone := func(round string) {
		t.Helper()
		awaitLibvirt(t)
		deadline := time.Now().Add(time.Minute)
		for {
			// A gateway holds its lease's lock until the kernel has ended it.
			if _, err := p.Reap(t.Context()); err != nil {
				t.Fatalf("%s: %v", round, err)
			}
			found := left(t, p, hubPrefix)
			if len(found) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: left behind: %v", round, found)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}

	// An owner who lives keeps what it has, and a machine that panics is lost.
	start := time.Now()
	first := startOwner(t, saved, ownerEnv+"_PANIC=1")
	if !first.follow(t, "leased") {
		t.Fatal("the owner leased nothing")
	}
	if removed, err := p.Reap(t.Context()); err != nil || len(removed) > 0 {
		t.Fatalf("reaping what lives: %v %v", removed, err)
	}
	if !first.follow(t, "uses") {
		t.Fatal("the owner could not use its machine")
	}
	took := time.Since(start)
	first.follow(t, toTheEnd)
	note(first.lease, "the first")
	note(first.machine, "the first")
	if found := left(t, p, hubPrefix); len(found) > 0 {
		t.Errorf("an owner whose machine was lost has left: %v", found)
	}

	rounds := 1
	if text := os.Getenv(roundsEnv); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	for n := range rounds {
		for name, kill := range victims {
			t.Run(name, func(t *testing.T) {
				if name == "libvirtd" && ownLibvirtd() < 0 {
					t.Skip("libvirtd was not started by these tests, so others may need it")
				}
				o := startOwner(t, saved)
				// At any moment from the start until shortly after it is in use.
				moment := time.Duration(rand.Int64N(int64(took + took/4)))
				round := fmt.Sprintf("round %d, %s killed after %s", n, name, moment.Round(time.Millisecond))
				t.Log(round)
				select {
				case <-time.After(moment):
				case <-o.ended:
					t.Fatalf("%s: the owner ended before", round)
				}
				kill(t, o)
				if name != "bj" {
					// Whatever it was doing, it either finds out or was not harmed,
					// and is then killed itself.
					select {
					case <-o.ended:
					case <-time.After(2*took + 10*time.Second):
						t.Logf("%s: nothing was there to kill yet", round)
						o.cmd.Process.Kill()
					}
				}
				<-o.ended
				o.follow(t, toTheEnd)
				note(o.lease, round)
				note(o.machine, round)
				gone(round)
			})
		}
	}
	// A lease after all that is one more of its own.
	env, err := p.LeaseFrom(t.Context(), spec(1), map[string]string{"m-0": saved})
	if err != nil {
		t.Fatal(err)
	}
	note(env.Name(), "the last")
	if err := env.Release(context.Background()); err != nil {
		t.Error(err)
	}
	nothingLeft(t, p, env.Name())
}
