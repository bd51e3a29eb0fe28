package seal

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	vnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// MarkSenders marks each packet that comes in at a machine's link with the unit
// that has sent it, before any rule of the hub looks at it. Link is the number of
// the hub's end, in the namespace of nl. MarkUnit(i+1) is what sockets of the i-th
// of the cgroup folders send, MarkOther what all other sockets do, and 0 what no
// socket has sent. It takes CAP_BPF or CAP_SYS_ADMIN over the host. The program
// stays for as long as the link.
//
// A packet that crosses from a namespace to the hub by a veth pair still has the
// socket that it came from, until the hub's network layer takes it up. So a
// program at the hub's end of the link can ask in which cgroup that socket was
// made, whatever the machine's root does to the packet on its way: a raw socket
// is somebody's as well, and what was made without one has no unit. nftables
// cannot ask: its own match of cgroups looks at sockets of its namespace alone.
func MarkSenders(nl *vnetlink.Handle, link int, folders []string) error {
	// Kernels before 5.11 count maps as locked memory.
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	cgroups, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.CGroupArray, KeySize: 4, ValueSize: 4, MaxEntries: uint32(len(folders))})
	if err != nil {
		return fmt.Errorf("making a map of cgroups: %w", err)
	}
	defer cgroups.Close()
	for i, path := range folders {
		dir, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("opening the cgroup of a unit: %w", err)
		}
		err = cgroups.Put(uint32(i), uint32(dir.Fd()))
		runtime.KeepAlive(dir)
		dir.Close()
		if err != nil {
			return fmt.Errorf("noting the cgroup %s: %w", path, err)
		}
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "bj_senders", Type: ebpf.SchedCLS, License: "GPL", Instructions: senders(cgroups.FD(), len(folders))})
	if err != nil {
		return fmt.Errorf("loading the program that tells senders apart: %w", err)
	}
	defer program.Close()
	attrs := vnetlink.QdiscAttrs{LinkIndex: link, Handle: vnetlink.MakeHandle(0xffff, 0), Parent: vnetlink.HANDLE_CLSACT}
	if err := nl.QdiscAdd(&vnetlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "clsact"}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("preparing a link for the program that tells senders apart: %w", err)
	}
	if err := nl.FilterAdd(&vnetlink.BpfFilter{
		FilterAttrs: vnetlink.FilterAttrs{LinkIndex: link, Parent: vnetlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:          program.FD(), Name: "bj_senders", DirectAction: true,
	}); err != nil {
		return fmt.Errorf("attaching the program that tells senders apart: %w", err)
	}
	return nil
}

// senders assembles the program.
func senders(cgroups, units int) asm.Instructions {
	const (
		offsetMark = 8 // in struct __sk_buff
		pass       = 0 // TC_ACT_OK
	)
	p := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Imm(asm.R7, 0)}
	for i := range units {
		p = append(p,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, cgroups),
			asm.Mov.Imm(asm.R3, int32(i)),
			asm.FnSkbUnderCgroup.Call(),
			asm.JSLT.Imm(asm.R0, 0, "set"), // there is no socket, or none that is open
			asm.Mov.Imm(asm.R7, int32(MarkUnit(i+1))),
			asm.JEq.Imm(asm.R0, 1, "set"),
			asm.Mov.Imm(asm.R7, 0),
		)
	}
	return append(p,
		asm.Mov.Imm(asm.R7, MarkOther),
		asm.StoreMem(asm.R6, offsetMark, asm.R7, asm.Word).WithSymbol("set"),
		asm.Mov.Imm(asm.R0, pass),
		asm.Return(),
	)
}
