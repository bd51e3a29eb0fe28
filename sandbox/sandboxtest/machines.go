package sandboxtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bj/sandbox"
)

func machineTests() []test {
	return []test{
		{"identity", testIdentity},
		{"files", testFiles},
		{"tree", testTree},
		{"host is hidden", testHidden},
		{"etc is cold", testEtc},
		{"devices", testDevices},
		{"writes stay inside", testWrites},
		{"root keeps off read-only files", testReadOnly},
		{"environments do not meet", testSideBySide},
		{"users", testUsers},
	}
}

func testIdentity(t *testing.T, s *suite) {
	env := s.sealed(t, 3, sandbox.Policy{})
	if !strings.Contains(env.Root(), " ") {
		t.Errorf("the root is called %q", env.Root())
	}
	if len(env.Free()) == 0 {
		t.Error("nothing came for free, not even a clock")
	}
	ids := map[string]bool{}
	for i, m := range env.Machines() {
		name := fmt.Sprintf("m-%d", i)
		if m.Name() != name {
			t.Errorf("machine %d is called %q", i, m.Name())
		}
		if got := strings.TrimSpace(must(t, m, "uname -n")); got != name {
			t.Errorf("%s has the host name %q", name, got)
		}
		if got := strings.TrimSpace(must(t, m, "cat /etc/hostname")); got != name {
			t.Errorf("%s has %q in /etc/hostname", name, got)
		}
		id := must(t, m, "cat /etc/machine-id")
		if ids[id] || len(id) != 33 || strings.HasPrefix(id, "0123456789abcdef") {
			t.Errorf("%s has the machine id %q", name, id)
		}
		ids[id] = true
		mac := must(t, m, "cat /sys/class/net/eth0/address")
		if ids[mac] || len(mac) != 18 {
			t.Errorf("%s has the hardware address %q", name, mac)
		}
		ids[mac] = true
		hosts := must(t, m, "cat /etc/hosts")
		for j := range 3 {
			v4, v6 := machineAddrs(j)
			for _, line := range []string{v4.String() + "\tm-%d\n", v6.String() + "\tm-%d\n"} {
				if !strings.Contains(hosts, fmt.Sprintf(line, j)) {
					t.Errorf("%s: /etc/hosts has no %q: %s", name, fmt.Sprintf(line, j), hosts)
				}
			}
		}
		v4, v6 := machineAddrs(i)
		r := guest(t, m, "listen", "tcp", v4.String()+":9999", "["+v6.String()+"]:9999")
		r.await("ready")
		if other, _ := machineAddrs((i + 1) % 3); i >= 0 {
			out := guest(t, m, "listen", "tcp", other.String()+":9999")
			if exit := out.wait(); exit.Code == 0 {
				t.Errorf("%s has the address %s of another", name, other)
			}
		}
		if got := strings.TrimSpace(must(t, m, "pwd; echo $HOME; id -u; umask")); got != "/root\n/root\n0\n0022" {
			t.Errorf("a command of root begins with %q", got)
		}
		if got := must(t, m, "cat /etc/resolv.conf"); !strings.Contains(got, "nameserver ") || strings.Contains(got, etcSecret) {
			t.Errorf("%s has the resolver %q", name, got)
		}
	}
}

func testFiles(t *testing.T, s *suite) {
	source := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(source, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("0123456789abcde\n", 1<<17) // 2 MiB
	spec := s.spec(1)
	spec.Machines[0].Files = append(spec.Machines[0].Files,
		sandbox.File{Path: "/etc/app/app.conf", Mode: 0o640, Content: []byte("a\x00b")},
		sandbox.File{Path: "/root/secret", Mode: 0o600, Content: []byte("s3cret")},
		sandbox.File{Path: "/usr/local/bin/script", Mode: 0o755, Content: []byte("#!/bin/sh\necho ran\n")},
		sandbox.File{Path: "/srv/empty", Mode: 0o644},
		sandbox.File{Path: "/srv/deep/er/big", Mode: 0o644, Content: []byte(big)},
		sandbox.File{Path: "/etc/hosts.allow", Mode: 0o644, Content: []byte("covers the host's\n")},
		sandbox.File{Path: "/srv/copy", Mode: 0o600, Source: source},
		sandbox.File{Path: "/srv/tool", Mode: 0o755, Source: source, ReadOnly: true},
	)
	env := s.lease(t, spec)
	s.seal(t, env, sandbox.Policy{})
	m := env.Machines()[0]
	if got, want := must(t, m, "stat -c '%a %u %g %s %n' /etc/app/app.conf /root/secret /usr/local/bin/script /srv/empty /srv/deep/er/big /srv/copy"),
		"640 0 0 3 /etc/app/app.conf\n600 0 0 6 /root/secret\n755 0 0 19 /usr/local/bin/script\n644 0 0 0 /srv/empty\n644 0 0 2097152 /srv/deep/er/big\n600 0 0 11 /srv/copy\n"; got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	if got := must(t, m, "script; cat /etc/hosts.allow /srv/copy /srv/tool; od -An -c /etc/app/app.conf; sort -u /srv/deep/er/big"); got != "ran\ncovers the host's\nof the hostof the host   a  \\0   b\n0123456789abcde\n" {
		t.Errorf("the files hold %q", got)
	}
	must(t, m, "echo changed > /srv/copy; echo changed >> /etc/app/app.conf; rm /root/secret")
	if got, err := os.ReadFile(source); err != nil || string(got) != "of the host" {
		t.Errorf("the host's file holds %q now (%v)", got, err)
	}
}

func testTree(t *testing.T, s *suite) {
	tree := t.TempDir()
	for name, text := range map[string]string{"opt/app/bin/run": "#!/bin/sh\necho app\n", "usr/local/bin/of-tree": "#!/bin/sh\necho tree\n", "etc/app/x.conf": "x"} {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	spec := s.spec(2)
	for i := range spec.Machines {
		spec.Machines[i].Files = append(spec.Machines[i].Files, sandbox.File{Path: "/", Source: tree, Tree: true, ReadOnly: true})
	}
	env := s.lease(t, spec)
	s.seal(t, env, sandbox.Policy{})
	for _, m := range env.Machines() {
		if got := must(t, m, "/opt/app/bin/run; of-tree; cat /etc/app/x.conf; echo y > /etc/app/x.conf; rm -f /opt/app/bin/run; echo z > /opt/app/new; ls /usr/bin/env"); got != "app\ntree\nx/usr/bin/env\n" {
			t.Errorf("%s: %q", m.Name(), got)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(tree, "etc/app/x.conf")); string(got) != "x" {
		t.Errorf("the host's tree was changed: %q", got)
	}
	if _, err := os.Stat(filepath.Join(tree, "opt/app/bin/run")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(tree, "opt/app/new")); err == nil {
		t.Error("a machine made a file in the host's tree")
	}
}

func testHidden(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	for _, path := range s.planted {
		if out, exit := sh(t, m, "cat '"+path+"'"); exit.Code == 0 {
			t.Errorf("%s of the host can be read: %q", path, out)
		}
	}
	// The same files, by whatever other name.
	if out := must(t, m, "find / -xdev -name '"+s.token+"*' 2>/dev/null; for d in /dev /run /tmp /var /root /home /sys /proc/1/root /proc/1/cwd; do find $d -maxdepth 5 -name '"+s.token+"*' 2>/dev/null; done; true"); out != "" {
		t.Errorf("files of the host are inside: %s", out)
	}
	if out := must(t, m, "ls -A /root /home /tmp /var/tmp /run/user /srv /mnt /opt /var/lib/app /var/cache /var/log 2>/dev/null | grep -v ':$' | grep -v '^$' || true"); s.opts.Image == nil && out != "" {
		t.Errorf("folders that should be empty hold:\n%s", out)
	}
	if out := must(t, m, "env; cat /proc/1/environ /proc/self/environ 2>/dev/null | tr '\\0' '\\n'"); strings.Contains(out, s.token) || strings.Contains(out, "TMPDIR") || strings.Contains(out, stagedEnv) {
		t.Errorf("the host's environment is inside:\n%s", out)
	}
	// Processes: the first one, and those of the command itself.
	// (Those of a kernel itself have no arguments.)
	if out := must(t, m, "for p in /proc/[0-9]*; do [ -z \"$(tr -d '\\0' < $p/cmdline)\" ] || { read c < $p/comm && echo ${p#/proc/} $c; }; done 2>/dev/null; true"); strings.Count(out, "\n") > 3 {
		t.Errorf("more processes than there should be:\n%s", out)
	}
	if out := must(t, m, "cat /proc/mounts /proc/self/mountinfo"); strings.Contains(out, s.token) || strings.Contains(out, "/tests") {
		t.Errorf("mounts tell of the host:\n%s", out)
	}
	if out := must(t, m, "cat /proc/net/unix"); strings.Contains(out, s.token) {
		t.Errorf("the host's Unix sockets are seen:\n%s", out)
	}
	if out := must(t, m, "cat /proc/net/dev | tail -n +3 | cut -d: -f1"); len(strings.Fields(out)) != 2 {
		t.Errorf("links other than lo and one: %s", out)
	}
	for _, network := range []string{s.socket, s.abstract} {
		out := guest(t, m, "connect", "unix", network, "2000")
		out.wait()
		if strings.HasPrefix(out.output(), "connected") {
			t.Errorf("the host's socket %s was reached", network)
		}
	}
	if out, _ := sh(t, m, "dmesg 2>&1 | head -3"); !s.opts.Virtual && strings.Contains(out, "[") {
		t.Errorf("the kernel's log can be read: %s", out)
	}
	if out := must(t, m, "cat /proc/self/cgroup"); strings.Contains(out, "bj-") {
		t.Errorf("a command sees the host's cgroup path: %s", out)
	}
	s.noHits(t)
}

func testEtc(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	if out := must(t, m, "grep -rls "+etcSecret+" /etc || true"); out != "" {
		t.Errorf("secrets of the host's /etc are inside: %s", out)
	}
	if out := must(t, m, "cut -d: -f2 /etc/shadow | sort -u"); out != "*\n" {
		t.Errorf("/etc/shadow holds %q", out)
	}
	for _, name := range []string{"passwd", "group", "nsswitch.conf"} {
		if _, err := os.Stat("/etc/" + name); err == nil {
			must(t, m, "test -s /etc/"+name)
		}
	}
	must(t, m, "ls -d /etc/ssl/certs > /dev/null || ! test -d /usr/share/ca-certificates")
	if s.opts.Image != nil {
		return // its own, as its packages left it
	}
	if out := must(t, m, "find /etc -type f ! -perm -004 ! -name shadow ! -name gshadow | head"); out != "" {
		t.Errorf("files that not everyone may read came along: %s", out)
	}
}

func testDevices(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	must(t, m, "echo x > /dev/null; head -c 8 /dev/zero | wc -c; head -c 8 /dev/urandom > /dev/shm/x; echo y > /dev/stdout; test -e /dev/fd/0; test -w /dev/full; test -d /dev/pts")
	if s.opts.Virtual {
		// Its disks and ports are there; what would lead to the host is not.
		if out := must(t, m, "ls -d /dev/vsock /dev/vhost* /dev/virtiofs* /dev/shm/ivshmem* 2>/dev/null || true"); out != "" {
			t.Errorf("devices that lead to the host: %s", out)
		}
	} else if out := must(t, m, "find /dev -type b; find /dev -type c | sort"); out != "/dev/full\n/dev/null\n/dev/random\n/dev/tty\n/dev/urandom\n/dev/zero\n" {
		extra := []string{}
		for _, d := range strings.Fields(out) {
			switch d {
			case "/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero", "/dev/pts/ptmx", "/dev/ptmx":
			default:
				extra = append(extra, d)
			}
		}
		if len(extra) > 0 {
			t.Errorf("devices of the host are inside: %v", extra)
		}
	}
	if out := must(t, m, "ls /sys/class/net"); strings.TrimSpace(out) != "eth0\nlo" {
		t.Errorf("/sys shows the links %q", out)
	}
}

func testWrites(t *testing.T, s *suite) {
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	marks := []string{"/etc", "/usr", "/usr/bin", "/usr/local/bin", "/bin", "/sbin", "/lib", "/tmp", "/var", "/var/tmp", "/run", "/root", "/home", "/srv", "/opt", "/mnt", "/dev/shm", "/"}
	for _, dir := range marks {
		if out, exit := sh(t, m, "echo x > "+dir+"/inside-"+s.token); exit.Code != 0 && s.root {
			t.Errorf("root cannot write to %s: %s", dir, out)
		}
		if _, err := os.Lstat(filepath.Join(dir, "inside-"+s.token)); err == nil {
			t.Errorf("a file that was written in a machine is in the host's %s", dir)
		}
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	sh(t, m, "echo evil:x:0:0::/:/bin/sh >> /etc/passwd; rm -f /etc/nsswitch.conf; mv /usr/bin/env /usr/bin/env2; chmod 4777 /usr/bin/tac; chown 5:5 /usr/bin/tail; rm -rf /usr/share/doc")
	if now, err := os.ReadFile("/etc/passwd"); err != nil || string(now) != string(passwd) {
		t.Errorf("the host's /etc/passwd was changed (%v)", err)
	}
	for _, path := range []string{"/usr/bin/env", "/usr/bin/tac", "/usr/bin/tail"} {
		fi, err := os.Stat(path)
		if err != nil {
			t.Error(err)
		} else if fi.Mode().Perm() != 0o755 {
			t.Errorf("the host's %s has the mode %v", path, fi.Mode())
		}
	}
	// Real ids: what distributions' scripts do works for root of the machine.
	if s.root {
		if out := must(t, m, "touch /srv/f; chown nobody /srv/f; stat -c %U /srv/f; su -s /bin/sh nobody -c 'id -u'"); out != "nobody\n65534\n" {
			t.Errorf("%q", out)
		}
	}
}

func testReadOnly(t *testing.T, s *suite) {
	source := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(source, []byte("#!/bin/sh\necho of the host\n"), 0o777); err != nil {
		t.Fatal(err)
	}
	// Writable for everyone on the host: only the mount keeps a machine off.
	if err := os.Chmod(source, 0o777); err != nil {
		t.Fatal(err)
	}
	spec := s.spec(1)
	spec.Machines[0].Files = append(spec.Machines[0].Files, sandbox.File{Path: "/usr/local/bin/program", Mode: 0o755, Source: source, ReadOnly: true})
	env := s.lease(t, spec)
	s.seal(t, env, sandbox.Policy{})
	m := env.Machines()[0]
	if out := must(t, m, "program"); out != "of the host\n" {
		t.Errorf("%q", out)
	}
	for _, attempt := range []string{
		"echo evil > /usr/local/bin/program",
		"mount -o remount,rw,bind /usr/local/bin/program && echo evil > /usr/local/bin/program",
		"mount -o remount,rw /usr/local/bin/program && echo evil > /usr/local/bin/program",
		"mkdir -p /mnt/x; mount --bind /usr/local/bin/program /mnt/x; touch /mnt/f; mount --bind /usr/local/bin/program /mnt/f && mount -o remount,rw,bind /mnt/f; echo evil > /mnt/f",
		"unshare -m sh -c 'mount -o remount,rw,bind /usr/local/bin/program; echo evil > /usr/local/bin/program'",
		"unshare -Urm sh -c 'mount -o remount,rw,bind /usr/local/bin/program; echo evil > /usr/local/bin/program'",
		"umount -l /usr/local/bin/program; echo evil > /usr/local/bin/program",
		"chmod 666 /usr/local/bin/program; chown 0 /usr/local/bin/program; truncate -s 0 /usr/local/bin/program",
		"touch -d 2001-01-01 /usr/local/bin/program",
		"chattr +i /usr/local/bin/program",
		"umount -l " + toolPath + "; rm -f " + toolPath,
	} {
		sh(t, m, attempt+" 2>/dev/null; true")
		got, err := os.ReadFile(source)
		if err != nil || string(got) != "#!/bin/sh\necho of the host\n" {
			t.Fatalf("%s: the host's file holds %q now (%v)", attempt, got, err)
		}
		if fi, err := os.Stat(source); err != nil || fi.Mode().Perm() != 0o777 || fi.ModTime().Year() == 2001 {
			t.Fatalf("%s: the host's file has mode %v, time %v now", attempt, fi.Mode(), fi.ModTime())
		}
	}
}

func testSideBySide(t *testing.T, s *suite) {
	// The same names and addresses, three times.
	var all []sandbox.Environment
	before := Snapshot()
	p := s.newProvider(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	names := map[string]bool{}
	for range 3 {
		env, err := p.Lease(ctx, s.spec(2))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.release(t, env) })
		all = append(all, env)
		names[env.Name()] = true
		s.seal(t, env, open())
	}
	if len(names) != 3 {
		t.Errorf("leases share names: %v", names)
	}
	// The names and IP addresses are the recipe's own; whatever a machine alone has is not.
	own := map[string]string{}
	for _, env := range all {
		for _, m := range env.Machines() {
			for _, path := range []string{"/etc/machine-id", "/sys/class/net/eth0/address"} {
				is := path + " " + must(t, m, "cat "+path)
				if who, again := own[is]; again || strings.Contains(is, "00:00:00:00:00:00") {
					t.Errorf("%s of %s has the %q of %s", m.Name(), env.Name(), is, who)
				}
				own[is] = m.Name() + " of " + env.Name()
			}
		}
	}
	v4, v6 := machineAddrs(0)
	var heard []*running
	for i, env := range all {
		m := env.Machines()[0]
		r := guest(t, m, "listen", "tcp", fmt.Sprintf("[::]:%d", openPort))
		r.await("ready")
		heard = append(heard, r)
		must(t, m, fmt.Sprintf("echo %d > /tmp/mine; echo %d > /dev/shm/mine", i, i))
	}
	for i, env := range all {
		r := guest(t, env.Machines()[1], "dials", "5000", fmt.Sprintf("tcp,%s:%d", v4, openPort), fmt.Sprintf("tcp,[%s]:%d", v6, openPort))
		r.wait()
		if strings.Count(r.output(), "answered") != 2 {
			t.Errorf("environment %d: %s", i, r.output())
		}
		if got := must(t, env.Machines()[0], "cat /tmp/mine /dev/shm/mine"); got != fmt.Sprintf("%d\n%d\n", i, i) {
			t.Errorf("environment %d sees files of another: %q", i, got)
		}
		if out := must(t, env.Machines()[1], "ls /tmp /dev/shm"); strings.Contains(out, "mine") {
			t.Errorf("machines share files: %s", out)
		}
	}
	for i, r := range heard {
		if n := strings.Count(r.output(), "heard"); n != 2 {
			t.Errorf("environment %d heard %d connections instead of 2: %s", i, n, r.output())
		}
	}
	// The end of one is nothing to the others.
	s.release(t, all[0])
	r := guest(t, all[1].Machines()[1], "dials", "5000", fmt.Sprintf("tcp,%s:%d", v4, openPort))
	r.wait()
	if !strings.Contains(r.output(), "answered") {
		t.Errorf("after another environment was released: %s", r.output())
	}
	s.release(t, all[1])
	s.release(t, all[2])
	s.checkLeftovers(t, p, before, all[0].Name(), all[1].Name(), all[2].Name())
}

func testUsers(t *testing.T, s *suite) {
	if !s.root {
		spec := s.spec(1)
		spec.Users = []string{"nobody"}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		env, err := s.newProvider(t).Lease(ctx, spec)
		if err == nil {
			s.release(t, env)
			t.Fatal("a lease for user nobody was given to an ordinary user, who has no ids for it")
		}
		if e := sandbox.AsError(err, ""); e.Code != sandbox.CodeLimits || e.Hint == "" {
			t.Errorf("the refusal is %q, code %q, hint %q", e, e.Code, e.Hint)
		}
		return
	}
	env := s.sealed(t, 1, sandbox.Policy{})
	m := env.Machines()[0]
	r := start(t, m, sandbox.Command{Script: "id -un; id -u; pwd; echo $HOME $USER; touch /tmp/mine && stat -c %U /tmp/mine; ls /root 2>&1 || cat /root/.profile 2>&1 || kill -9 1 2>&1 || true", User: "nobody"})
	if exit := r.wait(); exit.Code != 0 {
		t.Errorf("exit code %d", exit.Code)
	}
	out := r.output()
	if !strings.HasPrefix(out, "nobody\n65534\n/\n/nonexistent nobody\nnobody\n") || strings.Count(out, "denied")+strings.Count(out, "not permitted") < 3 {
		t.Errorf("as nobody: %q", out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if p, err := m.Start(ctx, sandbox.Command{Script: "id", User: "nosuchuser", Unit: "x"}, func(sandbox.Stream, []byte) {}); err == nil {
		exit, err := p.Wait(ctx)
		if err == nil && exit.Code == 0 {
			t.Error("a command ran as a user that does not exist")
		}
	}
}
