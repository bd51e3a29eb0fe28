package image

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"bj/sandbox"
)

// Boot is all that a virtual machine boots, without firmware or boot loader:
//
//	Kernel     starts with Cmdline, and the program /init of
//	Initramfs  as its first process, which loads the modules there, finds
//	Disk       and makes of it, read-only below and memory above, the root
//
// The initramfs holds
//
//	/init           the agent: a static program, started with AgentArgs
//	/modules/early  files, one a line, in the order in which they are loaded,
//	                that the agent's channel needs
//	/modules/late   those that the rest needs
//	/modules/*.ko   the modules
//	/dev /proc /sys /run /lower /upper /root   empty folders
type Boot struct {
	Kernel    string   // path of a vmlinux with a PVH note, or of a bzImage
	Initramfs string   // path
	Cmdline   []string // without the console, and without the agent's arguments
	Disk      Disk
	Systemd   bool // the root's own /sbin/init is started when the seal holds, the agent beside it
	// About says what it is, for the verdict; Digest is of all of it.
	About, Digest string
}

// Disk is the disk that a machine's root comes from. The file is never written
// to.
type Disk struct {
	Path   string
	Format string // "raw" or "qcow2"
	// Whole is a disk that somebody else made, with a root file system on it or
	// in one of its partitions. Otherwise it holds one squashfs.
	Whole bool
	Size  int64 // of a whole disk, as a machine sees it, in bytes
}

// Cmdline is what a kernel in a virtual machine is told: what makes it start
// fast under emulation, and nothing of security, since what runs in it is held
// from outside.
var cmdline = []string{
	"rdinit=/init", "quiet", "loglevel=3", "panic=-1", "mitigations=off", "nokaslr", "cryptomgr.notests", "tsc=reliable",
	"rcupdate.rcu_expedited=1", "init_on_alloc=0", "random.trust_cpu=on", "lsm=", "audit=0", "i8042.noaux", "i8042.nokbd",
	"8250.nr_uarts=1", "no_timer_check", "noreplace-smp", "net.ifnames=0",
}

// systemdCmdline is what an image's own systemd is told: the machine's network,
// names and disks are made already, and what would make them otherwise is left
// out, as are who would ask for settings over the network, consoles that nobody
// looks at, and the care of disks that are thrown away.
var systemdCmdline = []string{
	"fstab=no", "cloud-init=disabled", "systemd.firstboot=no", "systemd.getty_auto=no",
	"systemd.mask=systemd-networkd.service", "systemd.mask=systemd-networkd.socket", "systemd.mask=systemd-networkd-wait-online.service",
	"systemd.mask=NetworkManager.service", "systemd.mask=NetworkManager-wait-online.service",
	"systemd.mask=getty@tty1.service", "systemd.mask=e2scrub_reap.service", "systemd.mask=proc-sys-fs-binfmt_misc.automount",
	"systemd.mask=networking.service", "systemd.mask=ifup@eth0.service", "systemd.mask=dhcpcd.service",
}

// Modules that virtual machines need, beside those that these depend on. What a
// kernel has built in, or not at all, is passed over.
var (
	earlyModules = []string{"virtio_pci", "virtio_console"}
	lateModules  = []string{
		"virtio_blk", "virtio_net", "virtio_rng", "squashfs", "overlay", "af_packet",
		"nf_tables", "nft_objref", "nf_conntrack_netlink", "nfnetlink_log", "nfnetlink_queue", "nft_ct", "nft_log", "nft_socket", "nft_limit", "nft_counter", "nft_reject_inet", "nft_queue",
	}
	// diskModules are those that the disks of others need.
	diskModules = []string{"ext4", "xfs", "btrfs"}
)

// Boot returns what a virtual machine boots for an image, nil meaning Standard,
// and makes what the store does not have. Agent is a static program.
func (s *Store) Boot(ctx context.Context, i *sandbox.Image, agent string, progress func(string)) (Boot, error) {
	if progress == nil {
		progress = func(string) {}
	}
	if i == nil {
		i = Standard()
	}
	if i.Host {
		return Boot{}, &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("image %s: a virtual machine cannot have the host's root", i.Name),
			Hint: "leave the image out, which is a small Debian then, or name its packages with image(debian = [...])"}
	}
	k, err := s.Kernel(ctx, i.Kernel, progress)
	if err != nil {
		return Boot{}, err
	}
	b := Boot{Kernel: k.Path, Cmdline: slices.Clone(cmdline), Systemd: i.Systemd}
	late := lateModules
	if i.Disk != "" {
		late = slices.Concat(lateModules, diskModules)
	}
	digest := k.Digest
	if b.Initramfs, err = s.initramfs(ctx, k, agent, late, &digest, progress); err != nil {
		return Boot{}, err
	}
	what, content := "", ""
	if i.Disk != "" {
		if b.Disk, what, err = s.disk(ctx, i, progress); err != nil {
			return Boot{}, err
		}
		content = filepath.Base(b.Disk.Path)
	} else {
		r, err := s.Root(ctx, i, progress)
		if err != nil {
			return Boot{}, err
		}
		if i.Systemd {
			if err := hasSystemd(r.tar); err != nil {
				return Boot{}, hint(fmt.Errorf("image %s: %w", i.Name, err), "systemd = True boots the image's own systemd: install the packages systemd and systemd-sysv, or leave it out")
			}
		}
		if b.Disk.Path, err = s.Squashfs(ctx, r, progress); err != nil {
			return Boot{}, err
		}
		b.Disk.Format = "raw"
		what, content = r.String(), r.Digest
	}
	if i.Systemd {
		b.Cmdline = append(b.Cmdline, systemdCmdline...)
		what += ", booted by its systemd"
	}
	b.About = fmt.Sprintf("%s, %s", what, k.About)
	b.Digest = textDigest(strings.Join(append([]string{digest, content, fmt.Sprint(i.Systemd)}, b.Cmdline...), "\n"))
	return b, nil
}

// initramfs makes the archive of agent and modules, and adds what it holds to
// digest.
func (s *Store) initramfs(ctx context.Context, k Kernel, agent string, late []string, digest *string, progress func(string)) (string, error) {
	program, err := fileDigest(agent)
	if err != nil {
		return "", fmt.Errorf("reading the agent: %w", err)
	}
	*digest += " " + program
	key := fmt.Sprintf("initramfs 1 of kernel %s, agent %s, modules %s and %s", k.Digest, program, strings.Join(earlyModules, " "), strings.Join(late, " "))
	m, err := s.cached(ctx, key, progress, func(work string) (made, error) {
		init, err := os.ReadFile(agent)
		if err != nil {
			return made{}, err
		}
		records := []cpio.Record{cpio.StaticFile("init", string(init), 0o755)}
		for _, dir := range []string{"dev", "proc", "sys", "run", "lower", "upper", "root", "modules"} {
			records = append(records, cpio.Directory(dir, 0o755))
		}
		records = append(records, cpio.CharDev("dev/console", 0o600, 5, 1), cpio.CharDev("dev/null", 0o666, 1, 3))
		loaded := map[string]bool{}
		for _, set := range []struct {
			name  string
			names []string
		}{{"early", earlyModules}, {"late", late}} {
			files, err := k.order(set.names, loaded)
			if err != nil {
				return made{}, fmt.Errorf("reading the modules of %s: %w", k.About, err)
			}
			var list strings.Builder
			for _, f := range files {
				data, err := os.ReadFile(filepath.Join(k.Modules, f))
				if err != nil {
					return made{}, err
				}
				records = append(records, cpio.StaticFile("modules/"+path.Base(f), string(data), 0o644))
				list.WriteString("/modules/" + path.Base(f) + "\n")
			}
			records = append(records, cpio.StaticFile("modules/"+set.name, list.String(), 0o644))
		}
		cpio.MakeAllReproducible(records)
		tmp := filepath.Join(work, "initramfs")
		f, err := os.Create(tmp)
		if err != nil {
			return made{}, err
		}
		defer f.Close()
		w := cpio.Newc.Writer(f)
		if err := errors.Join(cpio.WriteRecords(w, records), cpio.WriteTrailer(w), f.Close()); err != nil {
			return made{}, fmt.Errorf("writing the initramfs: %w", err)
		}
		return s.keepData(tmp, "initramfs for "+k.About)
	})
	if err != nil {
		return "", err
	}
	return s.source(m), s.touch(m.Digest)
}

// order returns the files of modules and of what they depend on, in the order in
// which they can be loaded, without those in loaded, to which it adds them.
func (k Kernel) order(names []string, loaded map[string]bool) ([]string, error) {
	if k.Modules == "" {
		return nil, nil
	}
	files, err := k.moduleFiles()
	if err != nil {
		return nil, err
	}
	var out []string
	var load func(name string) error
	load = func(name string) error {
		file, ok := files[name]
		if !ok || loaded[file] {
			return nil // built in, most likely
		}
		loaded[file] = true
		needs, err := moduleNeeds(filepath.Join(k.Modules, file))
		if err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
		for _, n := range needs {
			if err := load(n); err != nil {
				return err
			}
		}
		out = append(out, file)
		return nil
	}
	for _, name := range names {
		if err := load(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleFiles maps the names of modules to their files, below k.Modules.
func (k Kernel) moduleFiles() (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Join(k.Modules, "kernel"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), ".ko") {
			rel, _ := filepath.Rel(k.Modules, p)
			files[moduleName(p)] = rel
		}
		return err
	})
	return files, err
}

// moduleNeeds returns the names of the modules that one needs, which it says
// itself. (modules.dep does not come with a package; depmod makes it later.)
func moduleNeeds(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(file, ".zst") || strings.HasSuffix(file, ".xz") || strings.HasSuffix(file, ".gz") {
		return nil, errors.New("compressed modules are not known yet")
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it is no module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}

// moduleName is a module's name in the kernel.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// Console is the console that a kernel on this processor writes to.
func Console() string {
	if runtime.GOARCH == "arm64" {
		return "ttyAMA0"
	}
	return "ttyS0"
}
