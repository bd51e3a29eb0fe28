package ns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/image"
)

// checkImage refuses what machines of namespaces cannot boot: they have the
// host's kernel and no disk, and their first process is the agent.
func (p *Provider) checkImage(m sandbox.MachineSpec) error {
	i := m.Image
	if i == nil {
		return nil
	}
	what := ""
	switch {
	case i.Disk != "":
		what = "the disk of image " + i.Name
	case i.Kernel != "":
		what = "the kernel of image " + i.Name
	case i.Systemd:
		what = "systemd, as image " + i.Name + " asks"
	case !i.Host && p.opts.Images == nil:
		return &sandbox.Error{Code: sandbox.CodeLease, Err: fmt.Errorf("leasing %s: there is no cache to make image %s in", m.Name, i.Name)}
	default:
		return nil
	}
	return &sandbox.Error{Code: sandbox.CodeLimits, Err: fmt.Errorf("leasing %s: a machine of namespaces cannot boot %s", m.Name, what), Hint: "run it with --sandbox libvirt"}
}

// bases returns what the root of each machine is made of, and keeps the images
// among them from being removed for as long as the environment lives.
func (e *environment) bases(ctx context.Context) ([]base, error) {
	bases := make([]base, len(e.spec.Machines))
	for i, m := range e.spec.Machines {
		if m.Image == nil || m.Image.Host {
			b, err := hostBase()
			if err != nil {
				return nil, err
			}
			bases[i] = b
			e.roots = append(e.roots, rootName())
			continue
		}
		r, dir, err := e.imageTree(ctx, m.Image)
		if err != nil {
			return nil, err
		}
		if bases[i], err = imageBase(dir); err != nil {
			return nil, err
		}
		e.roots = append(e.roots, r.String())
	}
	return bases, nil
}

// imageBase is the root of an image that lies in dir.
func imageBase(dir string) (base, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return base{}, fmt.Errorf("reading the root of an image: %w", err)
	}
	var tops []string
	for _, e := range entries {
		tops = append(tops, e.Name())
	}
	b, err := readBase(dir, tops)
	b.Tops = []string{"."}
	return b, err
}

// Top-level folders that are a machine's own, whatever an image has there: in
// memory, and the kernel's.
var (
	ownTops    = []string{"run", "tmp"}
	kernelTops = []string{"dev", "proc", "sys"}
)

// mountImage lays memory over layers over an image, and makes that the root.
func (b *rootBuilder) mountImage() error {
	lower := stage + "/lower/image"
	if err := os.Mkdir(lower, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", lower, err)
	}
	if f := b.t.base["."]; f == nil {
		lower = b.m.Base.Dir
	} else if err := moveMount(f, lower); err != nil {
		return fmt.Errorf("mounting the image: %w", err)
	}
	for _, layer := range b.layers {
		for top := range b.m.Base.Links {
			if fi, err := os.Lstat(filepath.Join(layer, top)); err == nil && fi.IsDir() {
				return fmt.Errorf("laying %s over the root: it has a folder /%s, which is a link here", layer, top)
			}
		}
	}
	upper, scratch := stage+"/up/image", stage+"/scratch/image"
	for _, dir := range []string{upper, scratch} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("making %s: %w", dir, err)
		}
	}
	if err := os.Mkdir(filepath.Join(upper, "etc"), 0o755); err != nil {
		return fmt.Errorf("making /etc: %w", err)
	}
	if err := b.writeEtcFiles(filepath.Join(upper, "etc")); err != nil {
		return err
	}
	var all []string
	for _, l := range append(slices.Clone(b.layers), lower) {
		all = append(all, escapeLower(l))
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,userxattr", strings.Join(all, ":"), upper, scratch)
	if err := unix.Mount("overlay", b.root, "overlay", 0, opts); err != nil {
		return fmt.Errorf("mounting memory over the image: %w", err)
	}
	for _, top := range slices.Concat(ownTops, kernelTops) {
		// A link there would lead out of the root, which is not this process's yet.
		target := filepath.Join(b.root, top)
		if fi, err := os.Lstat(target); err == nil && !fi.IsDir() {
			if err := os.Remove(target); err != nil {
				return fmt.Errorf("replacing /%s: %w", top, err)
			}
		}
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fmt.Errorf("making /%s: %w", top, err)
		}
	}
	for _, top := range ownTops {
		own, target := stage+"/up/"+top, filepath.Join(b.root, top)
		for _, f := range folders {
			if f.path == top || strings.HasPrefix(f.path, top+"/") {
				if err := makeFolder(filepath.Join(stage, "up", f.path), f.mode); err != nil {
					return err
				}
			}
		}
		if err := unix.Mount(own, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting /%s: %w", top, err)
		}
	}
	return nil
}

// makeImageFolders makes the folders that an image lacks. Its links are followed
// inside its root only; where one leads elsewhere, the folder is not made.
func (b *rootBuilder) makeImageFolders() error {
	root, err := os.OpenRoot(b.root)
	if err != nil {
		return fmt.Errorf("opening the root: %w", err)
	}
	defer root.Close()
	for _, f := range folders {
		if _, err := root.Lstat(f.path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := root.MkdirAll(f.path, f.mode.Perm()); err != nil {
			continue // a link or a file is in the way, and the image's own
		}
		perm := f.mode.Perm()
		if f.mode&0o1000 != 0 {
			perm |= fs.ModeSticky
		}
		if err := root.Chmod(f.path, perm); err != nil {
			return fmt.Errorf("setting the mode of /%s: %w", f.path, err)
		}
	}
	return nil
}

// imageTree returns the root of an image and the folder where it lies.
func (e *environment) imageTree(ctx context.Context, i *sandbox.Image) (image.Root, string, error) {
	images := e.provider.opts.Images
	r, err := images.Root(ctx, i, e.provider.opts.Notice)
	if err != nil {
		return r, "", err
	}
	letGo, err := images.Hold(ctx, r)
	if err != nil {
		return r, "", err
	}
	e.holds = append(e.holds, letGo)
	dir, err := images.Tree(ctx, r, e.provider.opts.Notice)
	return r, dir, err
}

// rootNames says what the machines run on: one name if it is the same for all.
func (e *environment) rootNames() string {
	var names []string
	same := true
	for i, name := range e.roots {
		same = same && name == e.roots[0]
		names = append(names, e.spec.Machines[i].Name+": "+name)
	}
	if len(names) > 0 && same {
		return e.roots[0]
	}
	return strings.Join(names, "; ")
}
