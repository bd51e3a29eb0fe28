package sandboxtest

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// kernelAttacks go for the host's kernel, files and processes. Their scripts
// run line by line; the measure is the host.
func kernelAttacks() []attack {
	return []attack{
		{name: "file systems", script: `
mkdir -p /mnt/a
for t in proc sysfs cgroup cgroup2 debugfs tracefs bpf devtmpfs securityfs pstore efivarfs configfs fusectl hugetlbfs mqueue binfmt_misc nfsd rpc_pipefs selinuxfs ramfs; do mount -t $t none /mnt/a && echo mounted $t && ls /mnt/a | head -3 && umount /mnt/a; done
for c in memory cpu devices freezer pids net_cls rdma misc; do mount -t cgroup -o $c none /mnt/a && echo mounted cgroup $c && ls /mnt/a && mkdir /mnt/a/bj-evil; umount /mnt/a; done
mount -t cgroup2 none /mnt/a && ls /mnt/a && mkdir /mnt/a/bj-evil
mount -o remount,rw /sys && echo x > /sys/kernel/uevent_helper
mount -o remount,rw /proc/sys
umount -l /sys; umount -l /proc; umount -l /dev; mount -t proc proc /proc
mount -t overlay o -o lowerdir=/,upperdir=/tmp,workdir=/var /mnt/a
for m in $(cut -d' ' -f2 /proc/mounts); do umount -l $m; done
`},
		{name: "devices", script: `
for d in "b 254 0" "b 8 0" "b 253 0" "b 259 0" "b 7 0" "c 1 1" "c 1 2" "c 1 4" "c 1 11" "c 10 200" "c 10 229" "c 10 232" "c 10 237" "c 5 1" "c 4 1"; do rm -f /tmp/d; mknod /tmp/d $d && echo made $d && timeout 1 head -c 16 /tmp/d | grep -q . && echo BREACH $d can be read; done
for d in $(cut -d' ' -f3 /proc/self/mountinfo | sort -u); do rm -f /tmp/b; mknod /tmp/b b ${d%:*} ${d#*:} && head -c 1 /tmp/b | grep -q . && echo BREACH the disk $d can be read; done
losetup -f
mount -o ro /tmp/b /mnt && echo BREACH a disk of the host is mounted
echo evil > /dev/kmsg
for f in /proc/kcore /proc/kmsg /dev/mem /proc/kpagecount /proc/kpageflags; do timeout 1 head -c 1 $f | grep -q . && echo BREACH $f can be read; done; cat /proc/kallsyms | grep -v ^0000 | head -1
`},
		{name: "settings of the kernel", script: `
for f in kernel/core_pattern kernel/modprobe kernel/poweroff_cmd kernel/ctrl-alt-del kernel/sysrq kernel/panic kernel/randomize_va_space kernel/unprivileged_bpf_disabled kernel/dmesg_restrict kernel/kptr_restrict kernel/usermodehelper/bset kernel/threads-max kernel/printk kernel/perf_event_paranoid vm/overcommit_memory vm/drop_caches vm/swappiness vm/panic_on_oom vm/mmap_min_addr fs/file-max fs/nr_open fs/suid_dumpable fs/protected_symlinks fs/pipe-max-size net/core/bpf_jit_enable net/core/rmem_max net/core/netdev_max_backlog; do sh -c ": > /proc/sys/$f" && echo "BREACH $f can be written"; done 2>/dev/null; true
sh -c ': > /proc/sysrq-trigger' && echo BREACH sysrq
echo -1000 > /proc/1/oom_score_adj; echo 1000 > /proc/1/oom_score_adj
mount -o remount,rw,bind /sys; mount -o remount,rw /sys; for f in $(find /sys -path /sys/fs/cgroup -prune -o -path '/sys/devices/virtual/net/*' -prune -o -path '*/net/*' -prune -o -type f -perm /222 -print 2>/dev/null); do sh -c ": > $f" && echo "BREACH $f can be written"; done 2>/dev/null | head -5; true
for f in $(find /sys/fs/cgroup -name release_agent 2>/dev/null); do echo /evil > $f; done; true
hostname evil; domainname evil
date -s @$(date +%s) && echo BREACH the clock can be set; adjtimex -t 10000 && echo BREACH the clock can be bent
insmod /lib/modules/x.ko; swapon /etc/passwd
renice -n -20 -p 1; chrt -f 99 true; ionice -c 1 true; ulimit -n 10000000; prlimit --nofile=10000000 --core=unlimited true
unshare -T true; unshare -Ur -T true
setarch -R true
`},
		{name: "cgroups", script: `
cat /proc/self/cgroup
for f in $(find /sys/fs/cgroup -name cgroup.procs); do echo $$ > $f; done
for f in $(find /sys/fs/cgroup -name 'memory.*' -o -name 'pids.max' -o -name 'cpu.*'); do echo max > $f; echo -1 > $f; done 2>/dev/null; true
echo +memory +pids +cpu > /sys/fs/cgroup/cgroup.subtree_control; echo threaded > /sys/fs/cgroup/cgroup.type
mkdir /sys/fs/cgroup/evil /sys/fs/cgroup/evil/deep /sys/fs/cgroup/evil/deep/er; echo 1 > /sys/fs/cgroup/evil/cgroup.freeze
sleep 1000 & echo $! > /sys/fs/cgroup/evil/deep/er/cgroup.procs
echo $$ > /sys/fs/cgroup/../cgroup.procs; ls /sys/fs/cgroup/../..
chmod 0 /sys/fs/cgroup; chown 65534 /sys/fs/cgroup /sys/fs/cgroup/cgroup.procs
echo 0 > /sys/fs/cgroup/cgroup.max.descendants; echo 1 > /sys/fs/cgroup/cgroup.kill
for i in $(seq 1 300); do mkdir /sys/fs/cgroup/many$i; done
unshare -C sh -c 'cat /proc/self/cgroup; mount -t cgroup2 c /mnt && ls /mnt'
unshare -Cr sh -c 'mount -t cgroup2 c /mnt && ls /mnt'
`},
		{name: "process 1", script: `
for f in environ cmdline maps mem fd fdinfo root cwd exe stack syscall auxv io status task/1/mem map_files pagemap; do ls -l /proc/1/$f; cat /proc/1/$f | head -c 10; done
for f in 0 1 2 3 4 5 6 7 8 9; do cat < /proc/1/fd/$f; echo x > /proc/1/fd/$f; done
echo x > /proc/1/mem; echo 0 > /proc/1/oom_adj; echo 0 > /proc/1/loginuid; echo y > /proc/1/attr/current; echo 1 > /proc/1/coredump_filter
for f in /proc/[0-9]*/fd/* /proc/[0-9]*/cwd /proc/[0-9]*/root; do ls $f/; cat $f/shadow $f/ssh/ssh_host_rsa_key $f/app/tls/server.key $f/app/private.conf; test -d $f/NetworkManager && echo x > $f/evil; done 2>/dev/null | head -400; true
for f in /proc/1/fd/*; do case "$(readlink $f)" in ""|/dev/null|anon_inode:*|pipe:*|/sys/fs/cgroup|/proc) ;; *) echo BREACH process 1 holds $f $(readlink $f);; esac; done
for f in /proc/1/fd/*; do timeout 0.2 sh -c "echo injected > $f"; done 2>/dev/null; true
for s in HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS RTMIN RTMAX; do kill -$s 1; kill -$s -- -1 & done; true
strace -p 1 -o /tmp/s & sleep 0.1; kill %1; cat /tmp/s
gdb -p 1 -batch -ex bt
prlimit -p 1 --nofile=0 --as=1 --fsize=0 --cpu=0 --nproc=0
nsenter -t 1 -a true
renice 19 1; chrt -p -i 0 1; taskset -p 0x1 1
rm -rf /proc/1/root/tmp/x; mount --bind /tmp /proc/1
chroot /proc/1/root true; cd /proc/1/cwd/../../../.. && ls
`},
		{name: "ways back to the host's files", script: `
cat /proc/self/mountinfo
ls -la / /.. /../.. /proc/self/root/..
for p in /proc/[0-9]*; do ls $p/root/ $p/cwd/; for f in $p/fd/*; do readlink $f; ls $f/; done; done 2>/dev/null | sort -u | head -100
mkdir /tmp/r; mount --bind / /tmp/r; mount --rbind / /tmp/r; umount -l /; pivot_root . . ; ls -la /
unshare -m sh -c 'umount -l /proc; umount -l /sys; umount -l /dev; for i in 1 2 3 4 5 6 7 8 9; do umount -l /; done; ls /'
unshare -Urm sh -c 'mount --make-rslave /; umount -R /sys; umount -R /usr; ls /usr /sys'
unshare -Urm sh -c 'mount -t tmpfs t /mnt; mkdir /mnt/u /mnt/w /mnt/m; mount -t overlay o -o lowerdir=/usr,upperdir=/mnt/u,workdir=/mnt/w /mnt/m && echo evil > /mnt/m/bin/env'
umount -l /usr; umount -l /etc; umount -l /bin; ls /usr /etc /sys /lower /stage; ls /sys/up /sys/lower /sys/layer /sys/root
ln -s /proc/1/root/root /tmp/host; ls /tmp/host/
find / -maxdepth 6 -name 'planted*' 2>/dev/null
mount -t nfs 127.0.0.1:/ /mnt; mount -t 9p x /mnt; mount -t virtiofs x /mnt; mount -t fuse x /mnt
setfattr -n trusted.overlay.opaque -v y /usr; setfattr -n user.overlay.redirect -v /root /etc; setfattr -n trusted.overlay.redirect -v /root /etc
`},
		{name: "sockets of the host", script: `
cat /proc/net/unix
find / -type s 2>/dev/null
for n in $(cut -c 54- /proc/net/unix | grep @); do echo $n; done
ls /run /var/run /run/user /tmp/.X11-unix
systemctl list-units; loginctl; journalctl -n 1; docker ps; virsh list; dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.ListNames
`},
		{name: "calls", code: func(a *attacker) { a.bypass() }},
		{name: "shared memory and queues", script: `
ipcs -a; ipcmk -M 4096; ipcmk -Q; ipcmk -S 1
ls /dev/shm /dev/mqueue /dev/hugepages
`},
	}
}

// siege runs an attack on the kernel, and looks at the host.
func (s *suite) siege(t *testing.T, a attack, user string) {
	if user != "" && !s.root {
		t.Skip("an ordinary user's machines have root alone")
	}
	before := s.hostFiles()
	clock := clockOffset(t)
	lines := []string{}
	for line := range strings.SplitSeq(a.script, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if a.code != nil {
		lines = append(lines, toolPath+" "+guestCommand+" calls")
	}
	var shared sandbox.Environment
	for i, line := range lines {
		if s.opts.Virtual && (shared == nil || !alive(shared.Machines()[0])) {
			if shared != nil {
				s.release(t, shared)
			}
			shared = s.sealed(t, 2, sandbox.Policy{})
		}
		// Else each in machines of its own, since root may well break its machine.
		t.Run(strconv.Itoa(i+1), func(t *testing.T) {
			env := shared
			if env == nil {
				env = s.sealed(t, 2, sandbox.Policy{})
			}
			m := env.Machines()[0]
			r, err := tryStart(t, m, sandbox.Command{Argv: []string{"timeout", "-k", "1", "10", "sh", "-c", line}, User: user, Unit: "siege"})
			if err == nil {
				closed(t, "the end of "+line, r.proc.Done())
			} else {
				closed(t, "the loss of a machine on which "+line+" did not start ("+err.Error()+")", m.Lost())
			}
			out := r.output()
			if testing.Verbose() {
				t.Logf("%s\n%s", line, brief(out[:min(len(out), 3000)]))
			}
			if strings.Contains(out, s.token) {
				t.Errorf("HOLE: %s: the host's planted things are seen: %s", line, out)
			}
			if strings.Contains(out, etcSecret) {
				t.Errorf("HOLE: %s: secrets of the host's /etc are seen", line)
			}
			for _, l := range strings.Split(out, "\n") {
				if s.unpromised(a.name, l) {
					t.Logf("docs/seal.md does not promise against this: %s", l)
				} else if strings.HasPrefix(l, "BREACH") {
					t.Errorf("HOLE: %s: %s", line, l)
				}
			}
			must(t, env.Machines()[1], "true")
			select {
			case <-env.Lost():
				t.Error("HOLE: the environment is lost")
			default:
			}
			s.noHits(t)
		})
	}
	now := s.hostFiles()
	for path, was := range before {
		if now[path] != was {
			t.Errorf("HOLE: the host's %s changed", path)
		}
		delete(now, path)
	}
	for path := range now {
		if strings.Contains(path, "evil") {
			t.Errorf("HOLE: %s was made on the host", path)
			os.Remove(path)
		}
	}
	if d := clockOffset(t) - clock; d > time.Second || d < -time.Second {
		t.Errorf("HOLE: the host's clock was moved by %s", d)
	}
}

// alive reports whether a machine still runs what it is told to.
func alive(m sandbox.Machine) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience/2)
	defer cancel()
	p, err := m.Start(ctx, sandbox.Command{Script: "ls /usr/bin/env /proc/self/exe /sys/class /dev/null >/dev/null", Unit: "alive"}, func(sandbox.Stream, []byte) {})
	if err != nil {
		return false
	}
	exit, err := p.Wait(ctx)
	return err == nil && exit.Code == 0
}

// hostFiles are contents and modes of files of the host that an attacker would
// like to change.
func (s *suite) hostFiles() map[string]string {
	files := map[string]string{}
	for _, pattern := range []string{"/etc/*", "/etc/*/evil*", "/root/*", "/home/*", "/usr/bin/env", "/run/*", "/tmp/" + s.token + "*", "/var/*"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			fi, err := os.Lstat(path)
			if err != nil {
				continue
			}
			text := fi.Mode().String()
			if fi.Mode().IsRegular() {
				b, _ := os.ReadFile(path)
				text += string(b)
			}
			files[path] = text
		}
	}
	return files
}

// clockOffset is the difference of the wall clock and the one that cannot be
// set.
func clockOffset(t *testing.T) time.Duration {
	var wall, boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &wall); err != nil {
		t.Fatal(err)
	}
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &boot); err != nil {
		t.Fatal(err)
	}
	return time.Duration(wall.Nano() - boot.Nano())
}
