// Package sandboxtest is what every sandbox.Provider must satisfy, in two
// parts: conformance, which is what a recipe may rely on, and escape, which is
// an attacker inside a machine who must not get out.
//
// The tests run in a stage: a process tree of its own, with network, mounts
// and processes of its own, which stands for the host. So the host's network
// is silent but for what the tests do, and a witness there sees every packet;
// files can be planted anywhere; and whatever is left behind is the provider's.
//
//	Main     the hidden commands of a test program: the stage, the guest
//	Run      all tests, as root and once more as an ordinary user
//	Leftovers  what is on the host that was not there before
//
// What an attacker reports is never the measure: it is what arrived at a
// witness outside of its machine.
package sandboxtest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bj/sandbox"
)

// Options say what a provider can do, and how the tests reach behind it. The
// zero value claims everything and reaches nothing.
type Options struct {
	// Left says what the leases of a provider that have these names, or all of them
	// if it is told none, have left in places of its own. Nil where there are none.
	Left func(t testing.TB, p sandbox.Provider, leases ...string) []string
	// Kill kills what owns an environment, as kill -9 would.
	Kill func(t testing.TB, env sandbox.Environment)
	// Holes are ways to open the seal of an environment from outside, by name.
	// Canaries must notice each of them.
	Holes map[string]func(t testing.TB, env sandbox.Environment)
	// Outside returns a file descriptor of a packet socket for everything that
	// got past the seal without having reached the host; the caller closes it.
	// Nil where there is no such place.
	Outside func(t testing.TB, env sandbox.Environment) *os.File
	// Virtual says that machines have kernels of their own, and take their time:
	// what root does to its own kernel is nothing to the host, an ordinary user
	// has no machines at all, and attacks on the kernel share one machine for as
	// long as it lives.
	Virtual bool
	// Patience is how long a single wait may take; 20 s if zero.
	Patience time.Duration
	// Keep are folders of the host that a stage must not hide.
	Keep []string
	// Prepare starts, on a stage, what the provider needs there.
	Prepare func(testing.TB)
	// Image is what machines boot; the provider's own choice if nil.
	Image *sandbox.Image
	// Few leaves of the tests one of each kind.
	Few bool
}

// few are one test of each kind.
var few = []string{
	"identity", "ends", "crash", "gateway is killed", "dark", "allows",
	"rules flushed", "another's hardware address", "fragments", "sockets past the stack",
}

// Main runs the hidden command that args (os.Args) ask for, and reports whether
// there was one. A test program calls it in its TestMain.
func Main(args []string) (handled bool) {
	if len(args) < 2 {
		return false
	}
	switch args[1] {
	case stageCommand:
		os.Exit(stageMain())
	case guestCommand:
		os.Exit(guestMain(args[2:]))
	}
	return false
}

// Run runs the suite. It must be called by a top-level test, whose program
// calls Main.
func Run(t *testing.T, newProvider func(testing.TB) sandbox.Provider, opts Options) {
	users := []string{asRoot, asUser}
	if opts.Virtual {
		users = users[:1]
	}
	for _, who := range users {
		t.Run(who, func(t *testing.T) {
			if staged() == "" {
				t.Parallel() // each has a stage of its own, and waits more than it works
				runStaged(t, who, opts.Keep)
				return
			}
			if staged() != who {
				t.SkipNow()
			}
			runSuite(t, newProvider, opts)
		})
	}
}

func runSuite(t *testing.T, newProvider func(testing.TB) sandbox.Provider, opts Options) {
	s := &suite{newProvider: newProvider, opts: opts, root: staged() == asRoot}
	if opts.Patience != 0 {
		patience = opts.Patience
	}
	if os.Getenv(ownerEnv) != "" {
		s.own(t)
		return
	}
	if opts.Prepare != nil {
		opts.Prepare(t)
	}
	s.plant(t)
	s.wire = openWire(t)
	type group struct {
		name  string
		tests []test
	}
	groups := []group{
		{"machines", machineTests()},
		{"commands", commandTests()},
		{"life", lifeTests()},
		{"seal", sealTests()},
		{"escape", escapeTests("")},
	}
	if !opts.Virtual { // there it is root's, on a kernel that nobody else has, and less
		groups = append(groups, group{"escape of nobody", escapeTests("nobody")})
	}
	for _, group := range groups {
		t.Run(group.name, func(t *testing.T) {
			for _, c := range group.tests {
				if s.opts.Few && !slices.Contains(few, c.name) {
					continue
				}
				t.Run(c.name, func(t *testing.T) { c.run(t, s); s.noHits(t) })
			}
		})
	}
}

// A test is one property.
type test struct {
	name string
	run  func(t *testing.T, s *suite)
}

// suite is what all tests share.
type suite struct {
	newProvider func(testing.TB) sandbox.Provider
	opts        Options
	root        bool // the provider runs as root: limits are kept, and all ids exist
	token       string
	tool        string // this program, as a file that machines can be given
	wire        *wire
	planted     []string // files of the host that no machine may see
	socket      string   // a Unix socket of the host
	abstract    string   // an abstract one
	hits        chan string
}

// patience is the deadline of a single wait in a test.
var patience = 20 * time.Second

// Ports of every test: the one that is open between machines, and one that is
// not.
const (
	openPort = 7000
	darkPort = 9000
	openUDP  = 7001
)

// toolPath is where every machine has the guest's program.
const toolPath = "/usr/local/bin/bj-guest"

func machineAddrs(i int) (v4, v6 netip.Addr) {
	return netip.AddrFrom4([4]byte{198, 18, 0, byte(10 + i)}), netip.AddrFrom16([16]byte{0xfd, 0x62, 0, 0x6a, 15: byte(0x10 + i)})
}

// spec asks for n machines m-0, m-1 and so on with the guest's program.
func (s *suite) spec(n int) sandbox.Spec {
	spec := sandbox.Spec{Owner: "//sandboxtest"}
	for i := range n {
		v4, v6 := machineAddrs(i)
		spec.Machines = append(spec.Machines, sandbox.MachineSpec{
			Name: fmt.Sprintf("m-%d", i), CPUs: 1, Memory: 256 << 20, Disk: 128 << 20, V4: v4, V6: v6, Image: s.opts.Image,
			Files: []sandbox.File{{Path: toolPath, Mode: 0o755, Source: s.tool, ReadOnly: true}},
		})
	}
	if s.root {
		spec.Users = []string{"nobody"}
	}
	return spec
}

// open is a policy with the ports that are open between machines.
func open() sandbox.Policy {
	return sandbox.Policy{Internal: []sandbox.Ports{
		{Protocol: "tcp", First: openPort, Last: openPort},
		{Protocol: "udp", First: openUDP, Last: openUDP},
	}}
}

// lease returns an environment that is not sealed yet. It is released at the
// end of the test, and must then have left nothing.
func (s *suite) lease(t testing.TB, spec sandbox.Spec) sandbox.Environment {
	t.Helper()
	before := Snapshot()
	p := s.newProvider(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	env, err := p.Lease(ctx, spec)
	if err != nil {
		t.Fatalf("leasing: %v", err)
	}
	t.Cleanup(func() {
		s.release(t, env)
		s.checkLeftovers(t, p, before, env.Name())
	})
	return env
}

func (s *suite) release(t testing.TB, env sandbox.Environment) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := env.Release(ctx); err != nil {
		t.Errorf("releasing: %v", err)
	}
}

func (s *suite) checkLeftovers(t testing.TB, p sandbox.Provider, before Host, names ...string) {
	t.Helper()
	if left := Leftovers(before, names...); len(left) > 0 {
		t.Errorf("left behind:\n\t%s", strings.Join(left, "\n\t"))
	}
	if s.opts.Left != nil {
		for _, left := range s.opts.Left(t, p, names...) {
			t.Errorf("left behind: %s", left)
		}
	}
}

// sealed leases n machines and seals them.
func (s *suite) sealed(t testing.TB, n int, p sandbox.Policy) sandbox.Environment {
	t.Helper()
	env := s.lease(t, s.spec(n))
	s.seal(t, env, p)
	return env
}

func (s *suite) seal(t testing.TB, env sandbox.Environment, p sandbox.Policy) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := env.Seal(ctx, p); err != nil {
		t.Fatalf("sealing: %v", err)
	}
}

// running is a command that was started.
type running struct {
	t    testing.TB
	proc sandbox.Process

	mu     sync.Mutex
	stdout strings.Builder
	stderr strings.Builder
	all    strings.Builder
	more   chan struct{} // has a value when there is new output
}

// start starts a command; it is killed with its environment.
func start(t testing.TB, m sandbox.Machine, c sandbox.Command) *running {
	t.Helper()
	r, err := tryStart(t, m, c)
	if err != nil {
		t.Fatalf("starting a command on %s: %v", m.Name(), err)
	}
	return r
}

// tryStart is start, for commands that may end their machine before it has said
// that they run.
func tryStart(t testing.TB, m sandbox.Machine, c sandbox.Command) (*running, error) {
	if c.Unit == "" {
		c.Unit = "test"
	}
	r := &running{t: t, more: make(chan struct{}, 1)}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	r.proc, err = m.Start(ctx, c, func(to sandbox.Stream, b []byte) {
		r.mu.Lock()
		r.all.Write(b)
		if to == sandbox.Stdout {
			r.stdout.Write(b)
		} else {
			r.stderr.Write(b)
		}
		r.mu.Unlock()
		select {
		case r.more <- struct{}{}:
		default:
		}
	})
	return r, err
}

// guest starts the guest's program with args.
func guest(t testing.TB, m sandbox.Machine, args ...string) *running {
	t.Helper()
	return start(t, m, sandbox.Command{Argv: append([]string{toolPath, guestCommand}, args...)})
}

func (r *running) output() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all.String()
}

// lines returns whole lines of output so far.
func (r *running) lines() []string {
	out := r.output()
	i := strings.LastIndexByte(out, '\n')
	if i < 0 {
		return nil
	}
	return strings.Split(out[:i], "\n")
}

// await waits until the command has written what it is asked for.
func (r *running) await(text string) {
	r.t.Helper()
	deadline := time.After(patience)
	for !strings.Contains(r.output(), text) {
		select {
		case <-r.more:
		case <-r.proc.Done():
			if !strings.Contains(r.output(), text) {
				r.t.Fatalf("the command ended without %q: %s", text, r.output())
			}
		case <-deadline:
			r.t.Fatalf("no %q within %s: %s", text, patience, r.output())
		}
	}
}

// wait waits for the end.
func (r *running) wait() sandbox.Exit {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	exit, err := r.proc.Wait(ctx)
	if err != nil {
		r.t.Fatalf("waiting for a command: %v\n%s", err, r.output())
	}
	return exit
}

// sh runs a script as root to its end.
func sh(t testing.TB, m sandbox.Machine, script string) (string, sandbox.Exit) {
	t.Helper()
	r := start(t, m, sandbox.Command{Script: script})
	exit := r.wait()
	return r.output(), exit
}

// must runs a script that ends with 0, and returns what it wrote.
func must(t testing.TB, m sandbox.Machine, script string) string {
	t.Helper()
	out, exit := sh(t, m, script)
	if exit.Code != 0 {
		t.Fatalf("%s: exit code %d: %s", script, exit.Code, out)
	}
	return out
}

// eventually polls a condition until it holds.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// closed waits for a channel to be closed.
func closed(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("%s: not within %s", what, patience)
	}
}

// plant puts on the host what no machine may see or reach.
func (s *suite) plant(t testing.TB) {
	t.Helper()
	s.token = fmt.Sprintf("planted%d%x", os.Getpid(), time.Now().UnixNano())
	tmp := t.TempDir()
	s.tool = filepath.Join(tmp, "guest")
	if err := copyFile(s.tool, "/proc/self/exe", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/root", "/home", "/home/user", "/tmp", "/var/tmp", "/var/lib/app", "/var/cache", "/run", "/run/user", "/srv", "/opt", "/mnt", "/dev/shm", tmp} {
		os.Mkdir(dir, 0o755)
		path := filepath.Join(dir, s.token)
		if err := os.WriteFile(path, []byte(s.token), 0o644); err != nil {
			continue // not this user's to write
		}
		t.Cleanup(func() { os.Remove(path) })
		s.planted = append(s.planted, path)
	}
	if len(s.planted) < 8 {
		t.Fatalf("planting files on the stage: only %v", s.planted)
	}
	s.hits = make(chan string, 64)
	s.socket, s.abstract = filepath.Join("/run", s.token+".sock"), "@"+s.token
	for _, name := range []string{s.socket, s.abstract, filepath.Join("/tmp", s.token+".sock")} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		s.serve(t, l)
	}
	t.Setenv("BJ_PLANTED", s.token)
}

// serve makes l a witness: whoever connects is a hit.
func (s *suite) serve(t testing.TB, l net.Listener) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
			s.hits <- l.Addr().Network() + " " + l.Addr().String()
		}
	}()
}

// noHits fails if a witness of the host was reached.
func (s *suite) noHits(t testing.TB) {
	t.Helper()
	for {
		select {
		case hit := <-s.hits:
			t.Errorf("a machine reached the host at %s", hit)
		default:
			return
		}
	}
}

func copyFile(to, from string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, data, mode); err != nil {
		return err
	}
	return os.Chmod(to, mode)
}
