package gate_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bj/sandbox"
	"bj/sandbox/gate"
)

// newRoot makes an authority for tests.
func newRoot(t testing.TB) *sandbox.Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &sandbox.Authority{Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs})}
}

// origin is a web server of the world, which notes what reaches it.
type origin struct {
	mu   sync.Mutex
	seen []string // "GET pkgs.internal /stable/x"
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	o.mu.Lock()
	o.seen = append(o.seen, r.Method+" "+r.Host+" "+r.RequestURI)
	for name := range r.Header {
		if strings.Contains(strings.ToLower(name), "override") || name == "Upgrade" || name == "X-Original-Url" || name == "X_original_url" {
			o.seen = append(o.seen, "header "+name)
		}
	}
	o.mu.Unlock()
	if r.URL.Query().Get("chunked") != "" {
		for range 3 {
			io.WriteString(w, "part")
			w.(http.Flusher).Flush()
		}
		return
	}
	fmt.Fprintf(w, "%s %s %d", r.Method, r.URL.Path, len(body))
}

func (o *origin) list() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.seen)
}

type webs struct {
	*setting
	origin  *origin
	trust   *x509.CertPool // as a machine has it
	refused func() []string
}

const (
	httpPort, httpsPort, sniPort = 1080, 1443, 1444
)

func newWebs(t testing.TB) *webs {
	lease, world := newRoot(t), newRoot(t)
	rule := func(port uint16, h sandbox.HTTP, condition int) sandbox.Allow {
		a := allow("tcp", outside4+"/32", port, port)
		a.HTTP, a.Condition = &h, condition
		return a
	}
	p := sandbox.Policy{Authority: lease, Allows: []sandbox.Allow{
		rule(httpPort, sandbox.HTTP{Host: "pkgs.internal", Path: "/stable", Methods: []string{"GET", "HEAD"}}, 0),
		rule(httpPort, sandbox.HTTP{Host: "pkgs.internal", Path: "/upload", Methods: []string{"POST"}}, 1),
		rule(httpsPort, sandbox.HTTP{TLS: true, Inspect: true, Host: "pkgs.internal", Path: "/stable", Methods: []string{"GET"}, CA: string(world.Cert)}, 2),
		rule(sniPort, sandbox.HTTP{TLS: true, Host: "pkgs.internal"}, 3),
	}}
	w := &webs{origin: &origin{}, trust: x509.NewCertPool()}
	var mu sync.Mutex
	var refused []string
	w.setting = newSetting(t, 1, p, func(c *gate.Config) {
		c.Refused = func(r gate.Request) {
			mu.Lock()
			refused = append(refused, fmt.Sprintf("%s %s %s %s", r.Scheme, r.Host, r.Method, r.Path))
			mu.Unlock()
		}
	})
	w.refused = func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(refused) }
	w.trust.AppendCertsFromPEM(lease.Cert)
	server := &http.Server{Handler: w.origin, ErrorLog: nil}
	t.Cleanup(func() { server.Close() })
	go server.Serve(w.world.Listen("tcp", join(outside4, httpPort)))
	pair, err := tls.X509KeyPair(world.Cert, world.Key)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"pkgs.internal"}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, pair.Leaf, key.Public(), pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	for _, port := range []int{httpsPort, sniPort} {
		go server.Serve(tls.NewListener(w.world.Listen("tcp", join(outside4, port)), config))
	}
	return w
}

// say sends bytes to a port and returns what comes back within a while.
func (w *webs) say(port int, text string) string {
	w.t.Helper()
	c, err := w.Machines[0].Dial("tcp", join(outside4, port), soon)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	return talk(c, text)
}

func talk(c net.Conn, text string) string {
	io.WriteString(c, text)
	c.SetReadDeadline(time.Now().Add(brief / 2))
	b, _ := io.ReadAll(c)
	return string(b)
}

func (w *webs) tls(port int, name string, change func(*tls.Config)) (*tls.Conn, error) {
	c, err := w.Machines[0].Dial("tcp", join(outside4, port), soon)
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { c.Close() })
	config := &tls.Config{ServerName: name, RootCAs: w.trust, NextProtos: []string{"h2", "http/1.1"}}
	if change != nil {
		change(config)
	}
	t := tls.Client(c, config)
	t.SetDeadline(time.Now().Add(2 * time.Second))
	return t, t.Handshake()
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: pkgs.internal\r\n\r\n" }

// What is allowed passes, request after request, with bodies of every kind.
func TestHTTP(t *testing.T) {
	w := newWebs(t)
	c, err := w.Machines[0].Dial("tcp", join(outside4, httpPort), soon)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(soon))
	br := bufio.NewReader(c)
	big := strings.Repeat("x", 1<<20)
	for _, x := range []struct{ send, want string }{
		{get("/stable"), "GET /stable 0"},
		{get("/stable/a%20b?x=../y"), "GET /stable/a b 0"},
		{"GET /stable/p HTTP/1.1\r\nHost: PKGS.internal:1080\r\nConnection: upgrade\r\nUpgrade: h2c\r\nX-HTTP-Method-Override: DELETE\r\nX_Original_URL: /admin\r\nX-Original-URL: /admin\r\n\r\n", "GET /stable/p 0"},
		{get("/stable/c?chunked=1"), "partpartpart"},
		{"POST /upload/x HTTP/1.1\r\nHost: pkgs.internal\r\nContent-Length: 1048576\r\n\r\n" + big, "POST /upload/x 1048576"},
		{"POST /upload/y HTTP/1.1\r\nHost: pkgs.internal\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5\r\nhello\r\n0\r\nX-T: carried\r\n\r\n", "POST /upload/y 5"},
	} {
		if _, err := io.WriteString(c, x.send); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("%.40q: %v; refused %q", x.send, err, w.refused())
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != x.want {
			t.Errorf("%.40q: %q, %v", x.send, body, err)
		}
	}
	if got := w.say(httpPort, "GET /stable/old HTTP/1.0\r\nHost: pkgs.internal\r\n\r\n"); !strings.Contains(got, "GET /stable/old 0") || !strings.HasPrefix(got, "HTTP/1.0") {
		t.Errorf("HTTP/1.0: %q", got)
	}
	for _, seen := range w.origin.list() {
		if strings.HasPrefix(seen, "header") {
			t.Errorf("the server saw %s", seen)
		}
	}
	eventually(t, func() error {
		used := w.relay.Used()
		if len(used) != 2 || used[0].Count != 5 || used[1].Count != 2 || used[1].Bytes < 1<<20 {
			return fmt.Errorf("used %+v", used)
		}
		return nil
	})
}

// TLS ends at the relay where requests are judged, and passes where only the
// name is.
func TestHTTPS(t *testing.T) {
	w := newWebs(t)
	c, err := w.tls(httpsPort, "pkgs.internal", nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := c.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
		t.Errorf("the relay speaks %q", p)
	}
	for range 2 {
		if got := talk(c, get("/stable/x")); !strings.Contains(got, "GET /stable/x 0") {
			t.Fatalf("got %q, refused %q", got, w.refused())
		}
		c.SetDeadline(time.Now().Add(soon))
		if c, err = w.tls(httpsPort, "pkgs.internal", nil); err != nil {
			t.Fatal(err)
		}
	}
	p, err := w.tls(sniPort, "pkgs.internal", func(c *tls.Config) { c.InsecureSkipVerify = true; c.NextProtos = nil })
	if err != nil {
		t.Fatal(err)
	}
	if got := talk(p, get("/anything")); !strings.Contains(got, "GET /anything 0") {
		t.Errorf("by name alone: %q", got)
	}
	if _, err := w.tls(httpsPort, "other.internal", nil); err == nil {
		t.Error("another name was answered")
	}
	if _, err := w.tls(sniPort, "other.internal", nil); err == nil {
		t.Error("another name was answered, by name alone")
	}
	if _, err := w.tls(httpsPort, "", func(c *tls.Config) { c.InsecureSkipVerify = true }); err == nil {
		t.Error("no name was answered")
	}
	if got := w.say(sniPort, get("/stable")); got != "" {
		t.Errorf("no TLS: %q", got)
	}
	c, err = w.tls(httpsPort, "pkgs.internal", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := talk(c, "GET /stable HTTP/1.1\r\nHost: other.internal\r\n\r\n"); got != "" {
		t.Errorf("a Host that differs from the SNI: %q", got)
	}
}

// httpAttacks are ways to reach something else through what is allowed.
var httpAttacks = map[string]string{
	"another path":           get("/other"),
	"no whole segment":       get("/stable2/x"),
	"dots":                   get("/stable/../admin"),
	"dots at the end":        get("/stable/.."),
	"a dot":                  get("/stable/./x"),
	"encoded dots":           get("/stable/%2e%2e/admin"),
	"dots before a query":    get("/stable/..%3f/admin"),
	"dots before a fragment": get("/stable/..%23/admin"),
	"overlong dots":          get("/stable/%c0%ae%c0%ae/admin"),
	"overlong slash":         get("/stable/..%c0%afadmin"),
	"half encoded dots":      get("/stable/.%2E/admin"),
	"encoded slash":          get("/stable%2f..%2fadmin"),
	"encoded twice":          get("/stable/%252e%252e/admin"),
	"encoded three times":    get("/stable/%25252e%25252e%25252fadmin"),
	"encoded, then broken":   get("/stable/%252e%252e%252f%25zz"),
	"a backslash":            get(`/stable\..\admin`),
	"an encoded backslash":   get("/stable/..%5cadmin"),
	"parameters of dots":     get("/stable/..;/admin"),
	"encoded parameters":     get("/stable/..%3b/admin"),
	"two slashes":            get("//stable/x"),
	"two slashes within":     get("/stable//x"),
	"NUL":                    get("/stable/%00/../admin"),
	"a newline":              get("/stable/%0d%0aX:y"),
	"a fragment":             get("/stable#/../admin"),
	"upper case":             get("/STABLE/x"),
	"another method":         "DELETE /stable/x HTTP/1.1\r\nHost: pkgs.internal\r\n\r\n",
	"POST where GET is":      "POST /stable/x HTTP/1.1\r\nHost: pkgs.internal\r\nContent-Length: 0\r\n\r\n",
	"GET where POST is":      get("/upload/x"),
	"a method in lower case": "get /stable/x HTTP/1.1\r\nHost: pkgs.internal\r\n\r\n",
	"CONNECT":                "CONNECT pkgs.internal:1080 HTTP/1.1\r\nHost: pkgs.internal\r\n\r\n",
	"CONNECT to a path":      "CONNECT /stable HTTP/1.1\r\nHost: pkgs.internal\r\n\r\n",
	"absolute form":          "GET http://pkgs.internal/stable/x HTTP/1.1\r\nHost: pkgs.internal\r\n\r\n",
	"absolute, elsewhere":    "GET http://192.0.2.2/stable/x HTTP/1.1\r\nHost: pkgs.internal\r\n\r\n",
	"asterisk":               "OPTIONS * HTTP/1.1\r\nHost: pkgs.internal\r\n\r\n",
	"another host":           "GET /stable/x HTTP/1.1\r\nHost: other.internal\r\n\r\n",
	"another port":           "GET /stable/x HTTP/1.1\r\nHost: pkgs.internal:81\r\n\r\n",
	"the address as host":    "GET /stable/x HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
	"two hosts":              "GET /stable/x HTTP/1.1\r\nHost: pkgs.internal\r\nHost: other.internal\r\n\r\n",
	"a user in the host":     "GET /stable/x HTTP/1.1\r\nHost: pkgs.internal@other.internal\r\n\r\n",
	"no host":                "GET /stable/x HTTP/1.1\r\n\r\n",
	"no host, old":           "GET /stable/x HTTP/1.0\r\n\r\n",
	"HTTP/0.9":               "GET /stable/x\r\n\r\n",
	"HTTP/2":                 "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"two lengths":            "POST /upload/x HTTP/1.1\r\nHost: pkgs.internal\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n" + get("/smuggled"),
	"a signed length":        "POST /upload/x HTTP/1.1\r\nHost: pkgs.internal\r\nContent-Length: +44\r\n\r\n" + get("/smuggled"),
	"another coding":         "POST /upload/x HTTP/1.1\r\nHost: pkgs.internal\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + get("/smuggled"),
	"two codings":            "POST /upload/x HTTP/1.1\r\nHost: pkgs.internal\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + get("/smuggled"),
	"a blank in a header":    "POST /upload/x HTTP/1.1\r\nHost: pkgs.internal\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + get("/smuggled"),
	"a folded header":        "GET /other HTTP/1.1\r\nHost: other.internal\r\n pkgs.internal\r\n\r\n",
	"a huge header":          "GET /stable/x HTTP/1.1\r\nHost: pkgs.internal\r\nX: " + strings.Repeat("y", 1<<20) + "\r\n\r\n",
	"not HTTP":               "SSH-2.0-OpenSSH_9.2\r\n",
}

// None of the attacks reaches the server, and each is recorded.
func TestHTTPAttacks(t *testing.T) {
	w := newWebs(t)
	names := make([]string, 0, len(httpAttacks))
	for name := range httpAttacks {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		before := len(w.refused())
		if got := w.say(httpPort, httpAttacks[name]); got != "" {
			t.Errorf("%s: answered %.200q", name, got)
		}
		if len(w.refused()) == before {
			t.Errorf("%s: not recorded", name)
		}
	}
	if seen := w.origin.list(); len(seen) != 0 {
		t.Errorf("the server saw %q", seen)
	}
	// The second request of a connection is judged as the first is, and what
	// looks like one within a body is none.
	if got := w.say(httpPort, get("/stable/x")+get("/other")); strings.Count(got, "HTTP/1.1 200") != 1 {
		t.Errorf("a second request: %q", got)
	}
	w.say(httpPort, "POST /upload/x HTTP/1.1\r\nHost: pkgs.internal\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+get("/smuggled"))
	w.say(httpPort, "POST /upload/x HTTP/1.1\r\nHost: pkgs.internal\r\nContent-Length: 60\r\n\r\n"+get("/smuggled"))
	for _, seen := range w.origin.list() {
		if strings.Contains(seen, "smuggled") || strings.Contains(seen, "other") {
			t.Errorf("the server saw %s", seen)
		}
	}
}

// Who cannot prove who it is, is not who is allowed.
func TestHTTPSUnverified(t *testing.T) {
	w := newWebs(t)
	p := sandbox.Policy{Authority: newRoot(t), Allows: []sandbox.Allow{{Protocol: "tcp", Prefix: prefix(outside4 + "/32"), First: 1, Last: 2000,
		HTTP: &sandbox.HTTP{TLS: true, Inspect: true, Host: "pkgs.internal", Path: "/stable", CA: string(newRoot(t).Cert)}}}}
	if err := w.relay.Seal(p); err != nil {
		t.Fatal(err)
	}
	if _, err := w.tls(httpsPort, "pkgs.internal", func(c *tls.Config) { c.InsecureSkipVerify = true }); err == nil {
		t.Error("the relay vouches for a server that it cannot verify")
	}
	if seen := w.origin.list(); len(seen) != 0 {
		t.Errorf("the server saw %q", seen)
	}
}

func FuzzRequest(f *testing.F) {
	for _, text := range httpAttacks {
		f.Add([]byte(text))
	}
	f.Add([]byte(get("/stable/x")))
	f.Fuzz(func(t *testing.T, b []byte) { gate.CheckRequest(t, b) })
}
