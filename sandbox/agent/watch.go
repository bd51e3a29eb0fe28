package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// Who was it? A packet that the seal drops says nothing of its process, which
// may be gone by the time that the drop is looked at. So each command carries a
// second seccomp filter, which stops it for a moment in every call that names
// where something is to go: connect, sendto with an address, sendmsg and
// sendmmsg. The agent notes the process and the destination, and lets the call
// go on as it was. It judges nothing: what the call does is the seal's to
// decide, so that it does not matter that another thread may change the
// arguments meanwhile.
//
// This needs no rights beyond those that the agent has, works the same for an
// ordinary user's machine and in a VM, sees processes that live for a
// millisecond, and sees Unix sockets. If the agent dies, these calls fail.

// An Attempt is a destination that a program tried to reach, whether or not it
// could. Equal ones of like processes are one.
type Attempt struct {
	// Protocol is as in a sandbox.Flow, or "unix".
	Protocol string
	To       netip.AddrPort // port 0 where there is none
	// Path is that of a Unix socket which was not there; those that are there
	// are not noted. Abstract names begin with "@".
	Path string
	// Ports are the last ones that questions for names came from, by which those
	// of several programs are told apart; empty for all else.
	Ports       []uint16
	Origin      sandbox.Origin
	Count       int64
	First, Last time.Time
	// Running says that its process, or the last of like ones, had not ended when
	// this was asked for.
	Running bool

	born   string // when its process started, by which its number is known to be still its
	socket int    // a copy of the socket, whose port is not known yet; 0 if there is none
}

// Tried is what the programs of a machine have done: see Client.Tried.
type Tried struct {
	Attempts  []Attempt  `json:",omitempty"`
	Listening []Listener `json:",omitempty"`
}

// portNames is where names are asked for, and maxPorts how many ports are kept of
// those who ask.
const (
	portNames = 53
	maxPorts  = 64
)

// maxAttempts bounds what is remembered; what was seen last stays.
const maxAttempts = 4096

// bounds of what is kept of one process
const (
	maxArgs    = 64
	maxArg     = 1024
	maxParents = 16
	maxParent  = 160
	maxNames   = 64 // of one sendmmsg
)

type attemptKey struct {
	protocol  string
	to        netip.AddrPort
	path      string
	exe, args string
	unit      string
}

// watcher notes attempts.
type watcher struct {
	stop    [2]int
	proc    *os.File
	tracker tracker
	self    int
	done    sync.WaitGroup

	mu     sync.Mutex
	seen   map[attemptKey]*Attempt
	calls  uint64              // that were stopped so far
	noting map[uint64]struct{} // those of them that are still being noted

	recent map[recentKey]recentCall
}

// Offsets of the fifth argument's halves in struct seccomp_data.
const (
	offsetArg4Low  = offsetArg0 + 4*8
	offsetArg4High = offsetArg4Low + 4
)

// watchFilter assembles the filter that stops calls which name a destination.
func watchFilter() []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	ret := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
	}
	unless := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: 1}
	}
	when := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: 1}
	}
	notify, allow := ret(unix.SECCOMP_RET_USER_NOTIF), ret(unix.SECCOMP_RET_ALLOW)
	return []unix.SockFilter{
		// Numbers of other architectures are refused by the first filter.
		load(offsetNr),
		unless(unix.SYS_CONNECT), notify,
		unless(unix.SYS_SENDMSG), notify,
		unless(unix.SYS_SENDMMSG), notify,
		when(unix.SYS_SENDTO), allow,
		// send is sendto without an address.
		load(offsetArg4Low), when(0), notify,
		load(offsetArg4High), when(0), notify,
		allow,
	}
}

// watch makes what this thread forks from now on, and what that forks, stop in
// calls that name a destination. It is called on the thread that forks.
func watch() (listener int, err error) {
	filter := watchFilter()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// Killable: else a signal, such as Go's runtime sends to itself, would start
	// the call again.
	for _, flags := range []uintptr{unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER} {
		fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		if errno == 0 {
			unix.CloseOnExec(int(fd))
			return int(fd), nil
		}
		if errno != unix.EINVAL {
			return -1, fmt.Errorf("installing the filter that sees attempts: %w", errno)
		}
	}
	return -1, fmt.Errorf("installing the filter that sees attempts: %w", unix.EINVAL)
}

// newWatcher watches what s forks from now on.
func newWatcher(s *spawner) (*watcher, error) {
	w := &watcher{tracker: s.tracker, self: os.Getpid(), seen: map[attemptKey]*Attempt{}, noting: map[uint64]struct{}{}, recent: map[recentKey]recentCall{}}
	var err error
	if w.proc, err = os.Open("/proc"); err != nil { // root of the machine may mount over it
		return nil, fmt.Errorf("opening the list of processes: %w", err)
	}
	if err := unix.Pipe2(w.stop[:], unix.O_CLOEXEC); err != nil {
		w.proc.Close()
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	notify := -1
	s.do(func() { notify, err = watch() })
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) {
		// Whoever started bj watches already, as some container runtimes do, or the
		// kernel is too old. Who it was will not be known; what is blocked is.
		return w, nil
	}
	if err != nil {
		w.proc.Close()
		unix.Close(w.stop[0])
		unix.Close(w.stop[1])
		return nil, err
	}
	w.listen(notify)
	return w, nil
}

// listen watches by a listener, which is closed with the watcher.
func (w *watcher) listen(notify int) {
	w.done.Go(func() {
		defer unix.Close(notify)
		w.run(notify)
	})
}

// close ends the watching; calls that are stopped fail.
func (w *watcher) close() {
	unix.Close(w.stop[1])
	w.done.Wait()
	unix.Close(w.stop[0])
	w.proc.Close()
}

// notification is struct seccomp_notif, response struct seccomp_notif_resp.
type (
	notification struct {
		id   uint64
		pid  uint32 // of the thread
		_    uint32
		nr   int32
		_    uint32
		_    uint64
		args [6]uint64
	}
	response struct {
		id    uint64
		value int64
		errno int32
		flags uint32
	}
)

const continueFlag = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE

func (w *watcher) run(notify int) {
	var handlers sync.WaitGroup
	defer handlers.Wait()
	slots := make(chan struct{}, 16)
	for {
		fds := []unix.PollFd{{Fd: int32(notify), Events: unix.POLLIN}, {Fd: int32(w.stop[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[0].Revents != 0 { // nobody has the filter any more but the forking thread
				return
			}
			continue
		}
		var n notification
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(notify), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			continue // it was killed meanwhile
		}
		at := time.Now() // by which attempts are in order, whichever handler is done first
		slots <- struct{}{}
		call := w.begin()
		handlers.Go(func() {
			defer func() { w.end(call); <-slots }()
			found := w.look(&n)
			r := response{id: n.id, flags: continueFlag}
			unix.Syscall(unix.SYS_IOCTL, uintptr(notify), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
			for i := range found {
				found[i].bound()
			}
			w.add(found, at)
		})
	}
}

func (w *watcher) begin() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	w.noting[w.calls] = struct{}{}
	return w.calls
}

func (w *watcher) end(call uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.noting, call)
}

// notingLimit bounds how long whoever asks what was tried waits until what has
// happened by then is noted: a program can hold up the one who looks at it.
const notingLimit = 500 * time.Millisecond

// caughtUp reports whether all calls up to that one are noted. It is called with
// w.mu held.
func (w *watcher) caughtUp(call uint64) bool {
	for k := range w.noting {
		if k <= call {
			return false
		}
	}
	return true
}

// look finds out what a stopped call is about.
func (w *watcher) look(n *notification) []Attempt {
	tid := int(n.pid)
	if tid == 0 {
		return nil
	}
	var names [][]byte
	switch n.nr {
	case unix.SYS_CONNECT:
		names = append(names, readName(tid, n.args[1], n.args[2]))
	case unix.SYS_SENDTO:
		names = append(names, readName(tid, n.args[4], n.args[5]))
	case unix.SYS_SENDMSG:
		names = append(names, readHeader(tid, n.args[1]))
	case unix.SYS_SENDMMSG:
		const size = 64 // of struct mmsghdr
		for i := range min(n.args[2], maxNames) {
			names = append(names, readHeader(tid, n.args[1]+i*size))
		}
	}
	k := recentKey{tid: tid, nr: n.nr, fd: int32(n.args[0]), names: string(bytes.Join(names, []byte{0, 0xff}))}
	if n.nr != unix.SYS_CONNECT {
		if found, ok := w.again(k); ok {
			return found
		}
	}
	var found []Attempt
	pid := 0
	for _, name := range names {
		if len(name) < 2 {
			continue
		}
		if pid == 0 {
			pid = w.leader(tid)
		}
		a, ok := w.destination(pid, int(int32(n.args[0])), name)
		if ok && !slices.ContainsFunc(found, func(b Attempt) bool { return a.Protocol == b.Protocol && a.To == b.To && a.Path == b.Path }) {
			found = append(found, a)
		} else if a.socket != 0 {
			unix.Close(a.socket)
		}
	}
	if len(found) > 0 {
		o := w.origin(pid)
		born := w.born(pid)
		for i := range found {
			found[i].Origin, found[i].born = o, born
		}
	}
	if n.nr != unix.SYS_CONNECT {
		w.remember(k, found)
	}
	return found
}

// A recentKey is a thread that sends to the same places through the same
// descriptor: who it is and what the socket is need not be looked up for each of
// thousands of datagrams.
type recentKey struct {
	tid   int
	nr    int32
	fd    int32
	names string
}

type recentCall struct {
	found []Attempt
	until time.Time
}

const (
	recentFor  = 100 * time.Millisecond
	maxRecents = 1024
)

// again returns what the same call was about a moment ago.
func (w *watcher) again(k recentKey) ([]Attempt, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.recent[k]
	return r.found, ok && time.Now().Before(r.until)
}

func (w *watcher) remember(k recentKey, found []Attempt) {
	found = slices.Clone(found)
	for i := range found {
		found[i].socket = 0 // which is closed by the one who looked
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.recent) >= maxRecents {
		clear(w.recent)
	}
	w.recent[k] = recentCall{found, time.Now().Add(recentFor)}
}

// read reads memory of a stopped process.
func read(pid int, address uint64, b []byte) bool {
	if address == 0 {
		return false
	}
	n, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}, []unix.RemoteIovec{{Base: uintptr(address), Len: len(b)}}, 0)
	return err == nil && n == len(b)
}

// maxName is the size of struct sockaddr_storage.
const maxName = 128

func readName(pid int, address, size uint64) []byte {
	if size < 2 || size > maxName {
		return nil
	}
	b := make([]byte, size)
	if !read(pid, address, b) {
		return nil
	}
	return b
}

// readHeader reads the name of a struct msghdr.
func readHeader(pid int, address uint64) []byte {
	var h [16]byte
	if !read(pid, address, h[:]) {
		return nil
	}
	return readName(pid, binary.NativeEndian.Uint64(h[:]), uint64(binary.NativeEndian.Uint32(h[8:])))
}

// leader returns the process of a thread.
func (w *watcher) leader(tid int) int {
	for line := range bytes.Lines(w.readProc(tid, "status")) {
		if v, ok := bytes.CutPrefix(line, []byte("Tgid:")); ok {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(v))); err == nil {
				return pid
			}
		}
	}
	return tid
}

// origin says what a process is.
func (w *watcher) origin(pid int) sandbox.Origin {
	o := sandbox.Origin{PID: pid, Exe: w.exe(pid), Argv: w.args(pid)}
	if gr, ok := w.tracker.groupOf(pid); ok {
		o.Unit = gr.unit
	}
	for next := w.parent(pid); next > 1 && next != w.self && len(o.Parents) < maxParents; next = w.parent(next) {
		o.Parents = append(o.Parents, fmt.Sprintf("%s (pid %d)", w.describe(next), next))
	}
	return o
}

func (w *watcher) exe(pid int) string {
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(int(w.proc.Fd()), strconv.Itoa(pid)+"/exe", b[:])
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b[:n]), " (deleted)")
}

func (w *watcher) args(pid int) []string {
	b := bytes.TrimSuffix(w.readProc(pid, "cmdline"), []byte{0})
	if len(b) == 0 {
		return nil
	}
	var args []string
	for _, a := range bytes.SplitN(b, []byte{0}, maxArgs+1) {
		if len(args) == maxArgs {
			break
		}
		args = append(args, string(a[:min(len(a), maxArg)]))
	}
	return args
}

// describe is one line for an ancestor. The shell of a step is called so, since
// its arguments say nothing.
func (w *watcher) describe(pid int) string {
	args := w.args(pid)
	if slices.Equal(args, scriptArgs) {
		return "the step's shell"
	}
	s := strings.Join(args, " ")
	if s == "" {
		s = w.exe(pid)
	}
	if len(s) > maxParent {
		s = s[:maxParent] + "…"
	}
	return s
}

// parent returns the parent's pid, 0 if there is none.
func (w *watcher) parent(pid int) int {
	if f := w.stat(pid); len(f) > 1 {
		n, _ := strconv.Atoi(string(f[1]))
		return n
	}
	return 0
}

// born returns when a process started, in words of the kernel's; empty if it has
// ended.
func (w *watcher) born(pid int) string {
	if f := w.stat(pid); len(f) > 19 && f[0][0] != 'Z' && f[0][0] != 'X' {
		return string(f[19])
	}
	return ""
}

// stat returns what is known of a process from its state on.
func (w *watcher) stat(pid int) [][]byte {
	b := w.readProc(pid, "stat")
	// pid (comm) state ppid; comm may hold anything.
	return bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
}

// maxProc bounds what is read of a file below /proc.
const maxProc = 64 << 10

func (w *watcher) readProc(pid int, name string) []byte {
	f, err := openat(w.proc, strconv.Itoa(pid)+"/"+name, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, maxProc))
	return b
}

// add counts attempts that were made at a time.
func (w *watcher) add(found []Attempt, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range found {
		k := attemptKey{a.Protocol, a.To, a.Path, a.Origin.Exe, strings.Join(a.Origin.Argv, "\x00"), a.Origin.Unit}
		if old := w.seen[k]; old != nil {
			old.Count++
			if at.Before(old.First) {
				old.First = at
			}
			if !at.Before(old.Last) {
				old.Last = at
				old.Origin, old.born = a.Origin, a.born // the last one is most likely to live still
			}
			old.Ports = append(old.Ports, a.Ports...)
			old.Ports = old.Ports[max(0, len(old.Ports)-maxPorts):]
			continue
		}
		if len(w.seen) >= maxAttempts {
			w.forgetOldest()
		}
		a.Count, a.First, a.Last = 1, at, at
		w.seen[k] = &a
	}
}

// forgetOldest makes room for some more.
func (w *watcher) forgetOldest() {
	times := make([]time.Time, 0, len(w.seen))
	for _, a := range w.seen {
		times = append(times, a.Last)
	}
	slices.SortFunc(times, time.Time.Compare)
	limit := times[len(times)/8]
	for k, a := range w.seen {
		if !a.Last.After(limit) {
			delete(w.seen, k)
		}
	}
}

// list returns all attempts, in order of first sight.
func (w *watcher) list() []Attempt {
	w.mu.Lock()
	for last, deadline := w.calls, time.Now().Add(notingLimit); !w.caughtUp(last) && time.Now().Before(deadline); {
		w.mu.Unlock()
		time.Sleep(time.Millisecond)
		w.mu.Lock()
	}
	out := make([]Attempt, 0, len(w.seen))
	for _, a := range w.seen {
		b := *a
		b.Ports = slices.Clone(a.Ports)
		out = append(out, b)
	}
	w.mu.Unlock()
	for i := range out {
		out[i].Running = out[i].born != "" && w.born(out[i].Origin.PID) == out[i].born
	}
	slices.SortFunc(out, func(a, b Attempt) int { return a.First.Compare(b.First) })
	return out
}
