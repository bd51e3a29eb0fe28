package libvirt

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"bj/sandbox"
	"bj/sandbox/agent"
	"bj/sandbox/hub"
)

// become tells a machine who it is, and puts its files on it.
func (g *guestMachine) become(ctx context.Context, spec sandbox.Spec, m plan, files []sandbox.File) error {
	id := identity{
		Name: g.name, Index: g.index, V4: spec.Machines[g.index].V4, V6: spec.Machines[g.index].V6,
		Hosts:  hub.HostsFile(spec.Machines),
		Resolv: fmt.Sprintf("nameserver %s\noptions timeout:2 attempts:1\n", hub.Addr4),
		Apart:  len(spec.Policy.Units) > 0,
		Memory: spec.Machines[g.index].Memory, Disk: spec.Machines[g.index].Disk, Layers: len(m.layers),
		Whole: m.boot.Disk.Whole, Systemd: m.boot.Systemd,
		MAC: m.mac().String(), Entropy: make([]byte, 64),
	}
	var machine [16]byte
	rand.Read(machine[:])
	rand.Read(id.Entropy)
	id.MachineID = hex.EncodeToString(machine[:])
	id.Clock = time.Now().UnixNano()
	if err := g.control.call(ctx, "become", id, nil); err != nil {
		return err
	}
	var err error
	if g.client, err = agent.NewClient(ctx, g.channel); err != nil {
		return fmt.Errorf("waiting for its agent: %w", err)
	}
	if err := g.setClock(ctx); err != nil {
		return err
	}
	for _, f := range files {
		if err := g.client.Put(ctx, f); err != nil {
			return fmt.Errorf("staging %s: %w", f.Path, err)
		}
	}
	return nil
}

// clockError is how wrong a machine's clock may be when it is handed out, if the
// host is not too busy to know.
const clockError = 200 * time.Millisecond

// setClock sets a machine's clock. What it was told when it became itself was
// old by the time that it arrived; this answer tells how old it can have been.
func (g *guestMachine) setClock(ctx context.Context) error {
	for range 5 {
		sent := time.Now()
		if err := g.control.call(ctx, "clock", sent.UnixNano(), nil); err != nil {
			return err
		}
		if time.Since(sent) < clockError {
			break
		}
	}
	return nil
}
