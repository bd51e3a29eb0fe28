package sandboxtest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// guestMain is what the tests run inside machines. What it finds out it writes
// as lines to stdout; it returns the exit code.
//
//	listen NETWORK ADDR...      a server that says whom it heard, and answers
//	serve PORT...               the same, TCP and UDP, on all addresses
//	ping ADDR MS                one echo request
//	connect NETWORK ADDR MS     connects and says what came of it
//	ask NETWORK ADDR MS TEXT    sends, and says what was answered
//	hold NETWORK ADDR           keeps asking, and says when no answer comes
//	capture LINK                says what frames come in
//	fds                         its own descriptors
//	dials TABLE                 several asks, one per argument: NETWORK,ADDR
//	attack NAME                 see attack.go
func guestMain(args []string) int {
	if len(args) == 0 {
		return 2
	}
	commands := map[string]func([]string) error{
		"listen": guestListen, "connect": guestConnect, "ask": guestAsk, "hold": guestHold,
		"capture": guestCapture, "fds": guestFDs, "dials": guestDials, "attack": guestAttack, "calls": guestCalls,
		"serve": guestServe, "ping": guestPing, "raw": guestRaw, "fill": guestFill, "burn": guestBurn, "forks": guestForks,
	}
	f := commands[args[0]]
	if f == nil {
		fmt.Println("unknown command", args[0])
		return 2
	}
	if err := f(args[1:]); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

func guestListen(args []string) error {
	network := args[0]
	for _, addr := range args[1:] {
		if err := serveEcho(network, addr); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	select {}
}

func guestServe(ports []string) error {
	for _, port := range ports {
		for _, network := range []string{"tcp", "udp"} {
			if err := serveEcho(network, "[::]:"+port); err != nil {
				return err
			}
		}
	}
	fmt.Println("ready")
	select {}
}

// guestPing sends one echo request through a raw socket.
func guestPing(args []string) error {
	to := netip.MustParseAddr(args[0])
	ms, _ := strconv.Atoi(args[1])
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := net.Dial(network, to.String())
	if err != nil {
		fmt.Println(outcome(err))
		return nil
	}
	defer c.Close()
	b := append([]byte{request, 0, 0, 0, 0x12, 0x34, 0, 1}, "bj-ping"...)
	binary.BigEndian.PutUint16(b[2:], checksum(b)) // the kernel does it again for IPv6
	c.SetDeadline(time.Now().Add(time.Duration(ms) * time.Millisecond))
	if _, err := c.Write(b); err != nil {
		fmt.Println(outcome(err))
		return nil
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := c.(*net.IPConn).ReadFrom(buf) // Read would leave the IPv4 header there
		if err != nil {
			fmt.Println(outcome(err))
			return nil
		}
		if n >= 8 && buf[0] == reply {
			fmt.Println("answered")
			return nil
		}
	}
}

// guestRaw sends two packets of a protocol that nothing here speaks.
func guestRaw([]string) error {
	c, err := net.Dial("ip4:132", "192.0.2.4")
	if err != nil {
		return err
	}
	defer c.Close()
	for range 2 {
		if _, err := c.Write([]byte("not really SCTP")); err != nil {
			return err
		}
	}
	return nil
}

// serveEcho listens in the background, prints what it hears, and answers
// "echo " and the same.
func serveEcho(network, addr string) error { return serve(network, addr, true) }

// serve is serveEcho, with or without answers.
func serve(network, addr string, echo bool) error {
	if strings.HasPrefix(network, "udp") {
		l, err := net.ListenPacket(network, addr)
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := l.ReadFrom(buf)
				if err != nil {
					return
				}
				fmt.Printf("heard udp %s on %s: %q\n", from, addr, buf[:n])
				if echo {
					l.WriteTo(append([]byte("echo "), buf[:n]...), from)
				}
			}
		}()
		return nil
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Printf("heard tcp %s on %s\n", c.RemoteAddr(), addr)
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					fmt.Fprintf(c, "echo %s", line)
				}
			}()
		}
	}()
	return nil
}

// outcome is a word for what a connection attempt came to.
func outcome(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case err == nil:
		return "connected"
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "silent"
	}
	return "failed: " + err.Error()
}

func guestConnect(args []string) error {
	ms, _ := strconv.Atoi(args[2])
	c, err := net.DialTimeout(args[0], args[1], time.Duration(ms)*time.Millisecond)
	fmt.Println(outcome(err))
	if err == nil {
		c.Close()
	}
	return nil
}

func ask(network, addr string, patience time.Duration, text string) string {
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		return outcome(err)
	}
	defer c.Close()
	return askOver(c, patience, text)
}

func askOver(c net.Conn, patience time.Duration, text string) string {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(c, text); err != nil {
		return outcome(err)
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err == io.EOF {
		return "closed"
	}
	if err != nil {
		return outcome(err)
	}
	return "answered " + strings.TrimSpace(answer)
}

func guestAsk(args []string) error {
	ms, _ := strconv.Atoi(args[2])
	fmt.Println(ask(args[0], args[1], time.Duration(ms)*time.Millisecond, args[3]))
	return nil
}

// guestDials asks many at once, and prints one line each in order.
func guestDials(args []string) error {
	ms, _ := strconv.Atoi(args[0])
	answers := make([]chan string, len(args)-1)
	for i, a := range args[1:] {
		network, addr, _ := strings.Cut(a, ",")
		answers[i] = make(chan string, 1)
		go func() { answers[i] <- ask(network, addr, time.Duration(ms)*time.Millisecond, "hello") }()
	}
	for i, a := range args[1:] {
		fmt.Println(a, <-answers[i])
	}
	return nil
}

func guestHold(args []string) error {
	c, err := net.DialTimeout(args[0], args[1], 5*time.Second)
	if err != nil {
		fmt.Println(outcome(err))
		return nil
	}
	defer c.Close()
	for i := 0; ; i++ {
		if s := askOver(c, time.Second, fmt.Sprint("hold ", i)); !strings.HasPrefix(s, "answered") {
			fmt.Println("cut:", s)
			return nil
		}
		if i == 0 {
			fmt.Println("holding")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// guestCapture prints every frame that comes in over a link.
func guestCapture(args []string) error {
	link, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	fd, err := packetSocket()
	if err != nil {
		return err
	}
	fmt.Println("ready")
	readPackets(fd, func(p packet) {
		if p.link == link.Index && !p.outgoing {
			fmt.Printf("frame %04x %x\n", p.kind, p.data)
		}
	})
	return nil
}

func guestFDs([]string) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		// The runtime's own, and the folder that is being read.
		if err != nil || strings.HasPrefix(target, "anon_inode:") || strings.HasPrefix(target, "/proc/") {
			continue
		}
		fmt.Println(e.Name(), target)
	}
	return nil
}

// guestFill uses so many MiB of memory.
func guestFill(args []string) error {
	mib, _ := strconv.Atoi(args[0])
	var all [][]byte
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
	fmt.Println("filled", len(all))
	return nil
}

// guestBurn spins on several threads for so many ms, and prints the CPU time
// and the time that it took, in ms.
func guestBurn(args []string) error {
	ms, _ := strconv.Atoi(args[0])
	begin := time.Now()
	end := begin.Add(time.Duration(ms) * time.Millisecond)
	done := make(chan int)
	for range 4 {
		go func() {
			n := 0
			for time.Now().Before(end) {
				n++
			}
			done <- n
		}()
	}
	for range 4 {
		<-done
	}
	wall := time.Since(begin)
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		return err
	}
	cpu := time.Duration(use.Utime.Nano() + use.Stime.Nano())
	fmt.Println(cpu.Milliseconds(), wall.Milliseconds())
	return nil
}

// guestForks makes processes that wait, up to so many, and prints how many it
// got and why there were no more.
func guestForks(args []string) error {
	limit, _ := strconv.Atoi(args[0])
	for i := range limit {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			fmt.Println("forked", i, errno)
			return nil
		}
		if pid == 0 {
			for {
				unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
			}
		}
	}
	fmt.Println("forked", limit, "no limit")
	return nil
}

// guestCalls makes system calls that no command may make.
func guestCalls([]string) error {
	(&attacker{}).bypass()
	return nil
}

func parseAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
