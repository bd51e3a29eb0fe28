package ns

import (
	"context"
	"fmt"
	"strings"

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
