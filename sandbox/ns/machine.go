package ns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"bj/sandbox/agent"

	"bj/sandbox/hub"
)

// bootMessage is what the gateway tells the first process of a machine. Its
// descriptors are the trees in the order of the fields that count them.
type bootMessage struct {
	Machine machineConfig
	Root    rootConfig
	Base    []string // top-level folders that come as descriptors
	Layers  int
	Binds   int
	Units   bool
}

// machineMain is the first process of a machine: it builds its root, says so,
// and becomes the agent. Descriptor 3 is the agent's channel, 4 leads to the
// gateway.
func machineMain() error {
	conn, err := hub.UnixConn(os.NewFile(4, "gateway"))
	if err != nil {
		return err
	}
	var options agent.Options
	var kept *os.File
	boot := func() error {
		if err := quietNetwork(); err != nil {
			return err
		}
		msg, t, err := receiveBoot(conn)
		if err != nil {
			return err
		}
		if err := unix.Sethostname([]byte(msg.Machine.Name)); err != nil {
			return fmt.Errorf("setting the host name: %w", err)
		}
		var id [16]byte
		rand.Read(id[:])
		options.Apart = msg.Machine.Apart
		switch {
		case t.units != nil && options.Apart:
			// Mounted nowhere: the agent alone has it.
			options.CgroupRoot = fmt.Sprintf("/proc/self/fd/%d", t.units.Fd())
			kept = t.units
			t.units = nil
		case t.units != nil:
			options.CgroupRoot = "/sys/fs/cgroup"
		}
		if err := buildRoot(msg.Machine, msg.Root, t, hex.EncodeToString(id[:])); err != nil {
			return err
		}
		for i, at := range msg.Machine.Doors {
			if err := hang(t.doors[i], at); err != nil {
				return err
			}
		}
		return nil
	}
	if err := boot(); err != nil {
		conn.Write([]byte(err.Error()))
		conn.Close()
		return err
	}
	if _, err := conn.Write([]byte("ok")); err != nil {
		return fmt.Errorf("answering the gateway: %w", err)
	}
	conn.Close()
	defer runtime.KeepAlive(kept)
	return serveAgent(options)
}

// quietNetwork gives the machine's network namespace its settings. It comes
// before the gateway learns of the namespace and makes the uplink, which takes
// its own from there.
func quietNetwork() error {
	// No address but those given, and no question by the kernel itself.
	for name, value := range map[string]string{"addr_gen_mode": "1", "accept_ra": "0", "accept_dad": "0", "router_solicitations": "0"} {
		if err := hub.SetSysctl("ipv6/conf/default/"+name, value); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("setting net/ipv6/conf/default/%s: %w", name, err)
		}
	}
	// Ping sockets for everyone, as distributions have it. A range that the
	// user namespace does not map is refused, which is no loss.
	for _, ids := range []string{"0 65535", "0 0"} {
		if hub.SetSysctl("ipv4/ping_group_range", ids) == nil {
			break
		}
	}
	return nil
}

// oomFile is the descriptor of the file that counts what the memory limit
// killed; there is none without limits.
const oomFile = 5

func serveAgent(options agent.Options) error {
	unix.CloseOnExec(3)
	if isOpen(oomFile) {
		unix.CloseOnExec(oomFile)
		options.OOMEvents = fmt.Sprintf("/proc/self/fd/%d", oomFile)
	}

	channel := os.NewFile(3, "agent")
	conn, err := net.FileConn(channel)
	channel.Close()
	if err != nil {
		return fmt.Errorf("using the agent's channel: %w", err)
	}
	return agent.Serve(context.Background(), conn, options)
}

// receiveBoot sends the machine's namespaces to the gateway, and receives what
// it needs to build its root.
func receiveBoot(conn *net.UnixConn) (bootMessage, trees, error) {
	var none trees
	var spaces []*os.File
	for _, name := range []string{"net", "user"} {
		f, err := os.Open("/proc/self/ns/" + name)
		if err != nil {
			return bootMessage{}, none, fmt.Errorf("opening the %s namespace: %w", name, err)
		}
		defer f.Close()
		spaces = append(spaces, f)
	}
	rights := unix.UnixRights(int(spaces[0].Fd()), int(spaces[1].Fd()))
	if _, _, err := conn.WriteMsgUnix([]byte{0}, rights, nil); err != nil {
		return bootMessage{}, none, fmt.Errorf("sending namespaces: %w", err)
	}
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(hub.MaxFDs*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(head[:], oob)
	if err != nil {
		return bootMessage{}, none, fmt.Errorf("receiving the machine's configuration: %w", err)
	}
	if n != len(head) || flags&unix.MSG_CTRUNC != 0 {
		return bootMessage{}, none, errors.New("receiving the machine's configuration: cut off")
	}
	files, err := hub.ParseRights(oob[:oobn])
	if err != nil {
		return bootMessage{}, none, err
	}
	buf := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return bootMessage{}, none, fmt.Errorf("receiving the machine's configuration: %w", err)
	}
	var msg bootMessage
	if err := json.Unmarshal(buf, &msg); err != nil {
		return bootMessage{}, none, fmt.Errorf("decoding the machine's configuration: %w", err)
	}
	want := len(msg.Base) + msg.Layers + msg.Binds + len(msg.Machine.Doors)
	if msg.Units {
		want++
	}
	if len(files) != want {
		return bootMessage{}, none, fmt.Errorf("receiving the machine's configuration: %d descriptors instead of %d", len(files), want)
	}
	t := trees{base: map[string]*os.File{}}
	for i, top := range msg.Base {
		t.base[top] = files[i]
	}
	files = files[len(msg.Base):]
	t.layers, files = files[:msg.Layers], files[msg.Layers:]
	t.binds, files = files[:msg.Binds], files[msg.Binds:]
	t.doors, files = files[:len(msg.Machine.Doors)], files[len(msg.Machine.Doors):]
	if msg.Units {
		t.units = files[0]
	}
	return msg, t, nil
}

// sendBoot is the gateway's side of receiveBoot.
func sendBoot(conn *net.UnixConn, msg bootMessage, t trees) error {
	var files []*os.File
	for _, top := range msg.Base {
		files = append(files, t.base[top])
	}
	files = append(files, t.layers...)
	files = append(files, t.binds...)
	files = append(files, t.doors...)
	if t.units != nil {
		files = append(files, t.units)
	}
	if len(files) > hub.MaxFDs {
		return fmt.Errorf("sending the machine's configuration: %d files are more than %d", len(files), hub.MaxFDs)
	}
	buf, err := json.Marshal(msg)
	if err != nil {
		return err
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(buf)))
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(head[:], rights, nil); err != nil {
		return fmt.Errorf("sending the machine's configuration: %w", err)
	}
	if _, err := conn.Write(buf); err != nil {
		return fmt.Errorf("sending the machine's configuration: %w", err)
	}
	return nil
}

// receiveSpaces returns the namespaces that the machine's first process sent.
func receiveSpaces(conn *net.UnixConn) (netns, userns *os.File, err error) {
	var one [1]byte
	oob := make([]byte, unix.CmsgSpace(2*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(one[:], oob)
	if err != nil {
		return nil, nil, err
	}
	files, err := hub.ParseRights(oob[:oobn])
	if err != nil {
		return nil, nil, err
	}
	if n != 1 || len(files) != 2 {
		hub.CloseAll(files)
		return nil, nil, errors.New("the machine's first process ended early")
	}
	return files[0], files[1], nil
}
