package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/pierrec/lz4/v4"
	"golang.org/x/sys/unix"
)

// Kernel is what a virtual machine boots, and its modules.
type Kernel struct {
	Path    string // a vmlinux, or the compressed image where it could not be unpacked
	Modules string // the folder of modules of that release
	Release string // "6.1.0-49-cloud-amd64"
	About   string // for people: "the host's kernel 6.1.0-49-amd64"
	Digest  string // SHA-256 of the file at Path, in hex
}

// Kernel returns the host's own kernel, if its image and modules can be read
// here, and else Debian's for virtual machines, fetched by apt, which checks
// its signature. Path, if not empty, is a kernel image of the caller's, booted
// with what modules the host or nobody has for it.
func (s *Store) Kernel(ctx context.Context, path string, progress func(string)) (Kernel, error) {
	if path != "" {
		return s.ownKernel(ctx, path, progress)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Kernel{}, err
	}
	release := unix.ByteSliceToString(u.Release[:])
	image, modules := "/boot/vmlinuz-"+release, "/lib/modules/"+release
	if readable(image) && plainModules(modules) {
		return s.unpacked(ctx, Kernel{Path: image, Modules: modules, Release: release, About: "the host's kernel " + release}, progress)
	}
	return s.debianKernel(ctx, progress)
}

func readable(path string) bool {
	f, err := os.Open(path)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// plainModules reports whether the modules in dir can be read, as they are.
func plainModules(dir string) bool {
	files, err := filepath.Glob(filepath.Join(dir, "kernel", "drivers", "char", "*", "*.ko"))
	more, err2 := filepath.Glob(filepath.Join(dir, "kernel", "drivers", "char", "*.ko"))
	files = append(files, more...)
	return err == nil && err2 == nil && len(files) > 0 && readable(files[0])
}

func (s *Store) ownKernel(ctx context.Context, path string, progress func(string)) (Kernel, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.Workspace, path)
	}
	if !readable(path) {
		return Kernel{}, hint(fmt.Errorf("the kernel %s cannot be read", path), "kernel = names a vmlinuz or vmlinux")
	}
	k := Kernel{Path: path, About: "kernel " + filepath.Base(path)}
	if _, release, ok := strings.Cut(filepath.Base(path), "-"); ok && plainModules(filepath.Join("/lib/modules", release)) {
		k.Release, k.Modules = release, "/lib/modules/"+release
	}
	return s.unpacked(ctx, k, progress)
}

// debianKernel fetches Debian's kernel for virtual machines.
func (s *Store) debianKernel(ctx context.Context, progress func(string)) (Kernel, error) {
	a, err := s.apt("linux-image-cloud-"+runtime.GOARCH, progress)
	if err != nil {
		return Kernel{}, hint(fmt.Errorf("the host's kernel cannot be read, and Debian's needs apt: %w", err), "make /boot/vmlinuz-$(uname -r) readable, or run bj on Debian")
	}
	m, err := s.cached(ctx, fmt.Sprintf("kernel 1 of Debian %s for %s", suite(), runtime.GOARCH), progress, func(work string) (made, error) {
		if err := roomForImage(work); err != nil {
			return made{}, err
		}
		start := time.Now()
		deb, err := a.kernel(ctx, work)
		if err != nil {
			return made{}, hint(fmt.Errorf("the host's kernel cannot be read, and fetching Debian's: %w", err), "make /boot/vmlinuz-$(uname -r) readable, or let apt reach Debian's repository: what was fetched once is kept")
		}
		digest, err := fileDigest(deb)
		if err != nil {
			return made{}, err
		}
		tree := filepath.Join(work, "tree")
		if _, err := (command{Dir: work, Env: a.env, Argv: []string{a.unpack, "-x", deb, tree}}).run(ctx); err != nil {
			return made{}, err
		}
		digest = textDigest("kernel " + digest)
		if err := moveTo(tree, filepath.Join(s.Dir, "trees", digest)); err != nil && !errors.Is(err, os.ErrExist) {
			return made{}, err
		}
		name := strings.SplitN(filepath.Base(deb), "_", 3)
		progress(fmt.Sprintf("fetched %s in %s", name[0], seconds(time.Since(start))))
		return made{Digest: digest, Tree: true, About: fmt.Sprintf("Debian's %s=%s", name[0], name[1])}, nil
	})
	if err != nil {
		return Kernel{}, err
	}
	tree := s.source(m)
	images, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, fmt.Errorf("the package of %s holds %d kernels", m.About, len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	k := Kernel{Path: images[0], Release: release, About: m.About}
	for _, dir := range []string{"lib/modules", "usr/lib/modules"} {
		if dir = filepath.Join(tree, dir, release); readable(dir) {
			k.Modules = dir
		}
	}
	if err := s.touch(m.Digest); err != nil {
		return Kernel{}, err
	}
	return s.unpacked(ctx, k, progress)
}

// kernelPackage is what the package that follows Debian's kernel depends on.
var kernelPackage = regexp.MustCompile(`^Depends: (linux-image-[^ ,]+)`)

// kernel fetches the package with the kernel itself, that and nothing that it
// depends on.
func (a *apt) kernel(ctx context.Context, work string) (string, error) {
	l, err := a.store.lock(ctx, "apt", nil)
	if err != nil {
		return "", err
	}
	defer l.unlock()
	if _, err := a.prepare(ctx, work); err != nil {
		return "", err
	}
	a.progress("fetching " + a.pkg)
	fetch := func() error {
		cache, err := lookPath(a.env, "apt-cache")
		if err != nil {
			return err
		}
		text, err := command{Dir: work, Env: a.env, Argv: []string{cache, "show", "--no-all-versions", a.pkg}}.run(ctx)
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if m := kernelPackage.FindStringSubmatch(line); m != nil {
				_, err = command{Dir: work, Env: a.env, Argv: []string{a.get, "download", "--quiet", m[1]}}.run(ctx)
				return err
			}
		}
		return fmt.Errorf("%s names no kernel", a.pkg)
	}
	if err = fetch(); err != nil && ctx.Err() == nil {
		// The lists may be too old.
		if err = a.update(ctx, work); err == nil {
			err = fetch()
		}
	}
	if err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(work, "linux-image-*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get has fetched %d kernels", len(debs))
	}
	return debs[0], nil
}

// unpacked replaces a compressed kernel by the vmlinux in it, which boots in
// some two thirds of the time, where the machine can start one (a PVH note).
func (s *Store) unpacked(ctx context.Context, k Kernel, progress func(string)) (Kernel, error) {
	digest, err := fileDigest(k.Path)
	if err != nil {
		return Kernel{}, err
	}
	k.Digest = digest
	m, err := s.cached(ctx, "vmlinux 1 of "+digest, progress, func(work string) (made, error) {
		data, err := os.ReadFile(k.Path)
		if err != nil {
			return made{}, err
		}
		if elf, err := vmlinux(data); err == nil {
			data = elf
		}
		tmp := filepath.Join(work, "vmlinux")
		if err := os.WriteFile(tmp, data, 0o644); err != nil {
			return made{}, err
		}
		return s.keepData(tmp, k.About)
	})
	if err != nil {
		return Kernel{}, err
	}
	k.Path, k.Digest = s.source(m), m.Digest
	return k, s.touch(m.Digest)
}

// vmlinux returns the kernel in a bzImage: see Documentation/arch/x86/boot.rst.
func vmlinux(image []byte) ([]byte, error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errors.New("no bzImage")
	}
	setup := int(image[0x1f1])
	if setup == 0 {
		setup = 4
	}
	start := (setup+1)*512 + int(binary.LittleEndian.Uint32(image[0x248:]))
	end := start + int(binary.LittleEndian.Uint32(image[0x24c:]))
	if start < 0 || end > len(image) || end-start < 8 {
		return nil, errors.New("no payload")
	}
	payload := image[start:end]
	size := int(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	payload = payload[:len(payload)-4]
	var r io.Reader
	switch {
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}):
		r = lz4.NewReader(bytes.NewReader(payload))
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		r = z
	default:
		return nil, errors.New("an unknown compression")
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(r, out); err != nil {
		return nil, err
	}
	if !hasPVH(out) {
		return nil, errors.New("no PVH note")
	}
	return out, nil
}

// hasPVH reports whether a vmlinux has the note by which QEMU starts it.
func hasPVH(image []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return false
	}
	const physEntry = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		b, err := io.ReadAll(p.Open())
		for err == nil && len(b) >= 12 {
			name, desc, kind := int(f.ByteOrder.Uint32(b)), int(f.ByteOrder.Uint32(b[4:])), f.ByteOrder.Uint32(b[8:])
			whole := 12 + (name+3)&^3 + (desc+3)&^3
			if name < 0 || desc < 0 || whole > len(b) {
				break
			}
			if kind == physEntry && string(bytes.TrimRight(b[12:12+name], "\x00")) == "Xen" {
				return true
			}
			b = b[whole:]
		}
	}
	return false
}
