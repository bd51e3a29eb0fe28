package libvirt

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	govirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"bj/sandbox"
)

// A template is a machine that libvirt saved while it waited to be told who it
// is: its memory and the state of its devices, in one file, after a header that
// holds the description of the domain. A machine starts from it under another
// name, with other channels and another link, by a header of its own: libvirt
// reads the file through a pipe, whose beginning is replaced.

// templateFile is the state in a template's folder.
const templateFile = "state"

// Template implements sandbox.Templater. The first lease of a host has none, as
// it is not known yet whether its machines are emulated.
func (p *Provider) Template(ctx context.Context, m sandbox.MachineSpec) (sandbox.Template, error) {
	if err := p.checkSpec(sandbox.Spec{Machines: []sandbox.MachineSpec{m}}); err != nil {
		return sandbox.Template{}, err
	}
	kvm := p.KVM().State
	conn, err := connect(ctx, p.opts.URI)
	if err != nil {
		return sandbox.Template{}, err
	}
	defer conn.Disconnect()
	made, _, err := p.plan(ctx, m)
	if err != nil {
		return sandbox.Template{}, err
	}
	own, err := conn.ConnectGetLibVersion()
	if err != nil {
		return sandbox.Template{}, fmt.Errorf("asking libvirt its version: %w", err)
	}
	emulator, err := conn.ConnectGetVersion()
	if err != nil {
		return sandbox.Template{}, fmt.Errorf("asking libvirt the emulator's version: %w", err)
	}
	agent, err := p.agentDigest()
	if err != nil {
		return sandbox.Template{}, err
	}
	origin := digest("template 1", agent, fmt.Sprint(own, emulator, kvm == KVMWorks), p.opts.URI)
	t := sandbox.Template{
		Origin: origin, Machine: m,
		About: fmt.Sprintf("%s, %d MiB, %d CPU", made.boot.About, m.Memory>>20, m.CPUs),
	}
	if kvm != KVMUnknown {
		t.Key = digest(origin, made.boot.Digest, made.boot.Kernel, made.boot.Initramfs, made.boot.Disk.Path, strings.Join(made.layers, "\n"),
			fmt.Sprint(made.cpus, made.memory, overhead), machineType)
	}
	t.Machine.Name, t.Machine.Files = "template", nil
	for _, f := range m.Files {
		if f.Tree { // a disk, which the machine sees from the start
			t.Machine.Files = append(t.Machine.Files, f)
		}
	}
	return t, nil
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

// agentDigest is the SHA-256 of the agent, in hex.
func (p *Provider) agentDigest() (string, error) {
	p.agentOnce.Do(func() {
		f, err := os.Open(p.opts.Agent)
		if err != nil {
			p.agentErr = fmt.Errorf("reading the agent: %w", err)
			return
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			p.agentErr = fmt.Errorf("reading the agent: %w", err)
			return
		}
		p.agentSum = hex.EncodeToString(h.Sum(nil))
	})
	return p.agentSum, p.agentErr
}

// Fill implements sandbox.Templater: it boots a machine at a hub of its own,
// where nothing else is, and saves it before it knows who it is.
func (p *Provider) Fill(ctx context.Context, t sandbox.Template, dir string) (err error) {
	conn, err := connect(ctx, p.opts.URI)
	if err != nil {
		return err
	}
	e := &environment{provider: p, libvirt: conn, template: true, spec: sandbox.Spec{Owner: "template", Machines: []sandbox.MachineSpec{t.Machine}}}
	defer func() { err = errors.Join(err, e.Release(context.WithoutCancel(ctx))) }()
	uid, gid, err := emulatorUser()
	if err != nil {
		return err
	}
	m, _, err := p.plan(ctx, t.Machine)
	if err != nil {
		return err
	}
	m.uid, m.gid = uid, gid
	plans := []plan{m}
	if err := e.open(plans); err != nil {
		return err
	}
	if e.kvm, err = e.accelerated(ctx, plans[0]); err != nil {
		return err
	}
	plans[0].kvm = e.kvm
	if err := e.startHub(); err != nil {
		return err
	}
	g, err := e.boot(ctx, plans[0])
	if err != nil {
		return fmt.Errorf("booting a template: %w", err)
	}
	defer g.channel.Close()
	defer g.control.conn.Close()
	path := filepath.Join(dir, templateFile)
	if err := e.ask(ctx, "saving a template", func() error {
		return conn.DomainSaveFlags(g.domain, path, nil, uint32(govirt.DomainSavePaused))
	}); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, err = readSaved(f)
	return err
}

// restore makes a machine from its template, as boot makes one from nothing.
func (e *environment) restore(ctx context.Context, m plan) (*guestMachine, error) {
	unusable := func(what string, err error) error {
		return fmt.Errorf("%s: %w: %w", what, sandbox.ErrTemplate, err)
	}
	saved, err := os.Open(filepath.Join(e.from[m.name], templateFile))
	if err != nil {
		return nil, unusable("opening its template", err)
	}
	defer saved.Close()
	header, description, err := readSaved(saved)
	if err != nil {
		return nil, unusable("reading its template", err)
	}
	text, err := m.rename(description)
	if err != nil {
		return nil, unusable("reading its template", err)
	}
	if err := addTap(m.domain()); err != nil {
		return nil, err
	}
	unlink, err := m.makeOverlay()
	if err != nil {
		return nil, err
	}
	defer unlink()
	fifo := m.port(pipeSuffix)
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	defer os.Remove(fifo)
	// Open for both, so that it waits for nobody; the stream knows its own end.
	pipe, err := os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a pipe: %w", err)
	}
	defer pipe.Close()
	stop := context.AfterFunc(ctx, func() { pipe.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	written := make(chan error, 1)
	go func() {
		_, err := pipe.Write(header.with(text))
		if err == nil {
			_, err = io.Copy(pipe, saved)
		}
		written <- err
	}()
	err = e.ask(ctx, "restoring its template", func() error {
		return e.libvirt.DomainRestoreFlags(fifo, nil, uint32(govirt.DomainSavePaused))
	})
	unlink()
	if err != nil {
		pipe.SetDeadline(time.Unix(1, 0))
	}
	if werr := <-written; err == nil {
		err = werr
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, unusable("starting from it", err)
	}
	g, conn, err := e.letRun(ctx, m)
	if err != nil {
		return nil, err
	}
	g.control = resumedControl(m.name, conn)
	return g, nil
}

// savedHeader begins a file of a saved domain: see qemu_saveimage.h of libvirt.
type savedHeader struct {
	Magic      [16]byte
	Version    uint32
	Length     uint32 // of the data that follows: description, cookie, padding
	Running    uint32
	Compressed uint32
	Cookie     uint32 // where it begins in the data; 0 without one
	_          [14]uint32
	cookie     []byte
}

const savedMagic = "LibvirtQemudSave"

// maxDescription bounds the data of a header, in bytes.
const maxDescription = 16 << 20

// readSaved reads the header of a saved domain and its description; what
// follows in r is the machine's state.
func readSaved(r io.Reader) (savedHeader, string, error) {
	var h savedHeader
	raw := make([]byte, 92)
	if _, err := io.ReadFull(r, raw); err != nil {
		return h, "", fmt.Errorf("reading a saved machine: %w", err)
	}
	copy(h.Magic[:], raw)
	for i, field := range []*uint32{&h.Version, &h.Length, &h.Running, &h.Compressed, &h.Cookie} {
		*field = binary.NativeEndian.Uint32(raw[16+4*i:])
	}
	if string(h.Magic[:]) != savedMagic || h.Version != 2 || h.Compressed != 0 || h.Length > maxDescription || h.Cookie > h.Length {
		return h, "", errors.New("reading a saved machine: it has no header that bj knows")
	}
	data := make([]byte, h.Length)
	if _, err := io.ReadFull(r, data); err != nil {
		return h, "", fmt.Errorf("reading a saved machine: %w", err)
	}
	text := data
	if h.Cookie > 0 {
		text = data[:h.Cookie]
		h.cookie, _, _ = bytes.Cut(data[h.Cookie:], []byte{0})
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	return h, string(text), nil
}

// with returns the header with another description.
func (h savedHeader) with(description string) []byte {
	data := append([]byte(description), 0)
	cookie := uint32(0)
	if len(h.cookie) > 0 {
		cookie = uint32(len(data))
		data = append(append(data, h.cookie...), 0)
	}
	out := append([]byte{}, h.Magic[:]...)
	for _, field := range []uint32{h.Version, uint32(len(data)), h.Running, h.Compressed, cookie} {
		out = binary.NativeEndian.AppendUint32(out, field)
	}
	return append(append(out, make([]byte, 4*14)...), data...)
}

// rename makes the description of a saved domain the one of this machine.
func (p plan) rename(description string) (string, error) {
	var d libvirtxml.Domain
	if err := d.Unmarshal(description); err != nil {
		return "", err
	}
	note, err := xml.Marshal(p.lease)
	if err != nil {
		return "", err
	}
	var id [16]byte
	rand.Read(id[:])
	d.Name, d.Title = p.domain(), strings.TrimSpace(p.lease.Owner+" "+p.name)
	d.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	d.Metadata = &libvirtxml.DomainMetadata{XML: string(note)}
	if d.Devices == nil || len(d.Devices.Interfaces) != 1 || len(d.Devices.Serials) != 1 {
		return "", errors.New("it is not a machine of bj")
	}
	d.Devices.Interfaces[0].Target = &libvirtxml.DomainInterfaceTarget{Dev: p.domain(), Managed: "no"}
	d.Devices.Interfaces[0].MAC = &libvirtxml.DomainInterfaceMAC{Address: p.mac().String()}
	console := &libvirtxml.DomainChardevSource{File: &libvirtxml.DomainChardevSourceFile{Path: p.console()}}
	d.Devices.Serials[0].Source = console
	for i := range d.Devices.Consoles {
		d.Devices.Consoles[i].Source = console
	}
	for i, c := range d.Devices.Channels {
		if c.Target == nil || c.Target.VirtIO == nil {
			return "", errors.New("it has a channel that is not bj's")
		}
		d.Devices.Channels[i].Source = &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind", Path: p.port(c.Target.VirtIO.Name)}}
	}
	if p.boot.Disk.Whole && len(d.Devices.Disks) > 0 {
		d.Devices.Disks[0].Source = overlaySource(p)
	}
	return d.Marshal()
}

var _ sandbox.Templater = (*Provider)(nil)
