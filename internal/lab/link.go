package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The link joins the two halves of a mesh: the front, which the user started
// and which lives in the machine's own network, and the node, which lives in
// namespaces of its own. The node asks the front for sockets of the outer
// network and gets them as descriptors; the front tells the node to stop. When
// either side goes, the other one notices.

// message is one packet on the link.
type message struct {
	ID      int    `json:"id,omitempty"`
	Listen  string `json:"listen,omitempty"` // TCP address to listen on
	Dial    string `json:"dial,omitempty"`   // address to connect to
	Network string `json:"network,omitempty"`
	Stop    bool   `json:"stop,omitempty"`
	Error   string `json:"error,omitempty"`
	Busy    bool   `json:"busy,omitempty"` // Error is that the address is in use
}

// link is one end.
type link struct {
	conn *net.UnixConn

	mu sync.Mutex
	// mu guards the calls that wait for an answer.
	next    int
	pending map[int]chan answer
	closed  error
}

type answer struct {
	message
	file *os.File
}

// newLink takes over one end of a socket pair of packets.
func newLink(f *os.File) (*link, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("lab: the link is not a Unix socket")
	}
	return &link{conn: conn, pending: make(map[int]chan answer)}, nil
}

// linkPair returns both ends.
func linkPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link"), nil
}

func (l *link) send(m message, file *os.File) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	_, _, err = l.conn.WriteMsgUnix(data, rights, nil)
	return err
}

func (l *link) receive() (message, *os.File, error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := l.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return message{}, nil, err
	}
	if n == 0 {
		return message{}, nil, net.ErrClosed
	}
	files, err := receivedFiles(oob[:oobn])
	if err != nil {
		return message{}, nil, err
	}
	var file *os.File
	if len(files) > 0 {
		file = files[0]
	}
	var m message
	return m, file, json.Unmarshal(buf[:n], &m)
}

// receivedFiles returns the descriptors that came with a message.
func receivedFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// call asks the other side for a descriptor.
func (l *link) call(ctx context.Context, m message) (*os.File, error) {
	reply := make(chan answer, 1)
	l.mu.Lock()
	if l.closed != nil {
		l.mu.Unlock()
		return nil, l.closed
	}
	l.next++
	m.ID = l.next
	l.pending[m.ID] = reply
	l.mu.Unlock()
	if err := l.send(m, nil); err != nil {
		return nil, err
	}
	select {
	case a := <-reply:
		switch {
		case a.Busy:
			return nil, fmt.Errorf("%w: %s", unix.EADDRINUSE, a.Error)
		case a.Error != "":
			return nil, errors.New(a.Error)
		case a.file == nil:
			return nil, errors.New("lab: an answer without descriptor")
		}
		return a.file, nil
	case <-ctx.Done():
		l.mu.Lock()
		delete(l.pending, m.ID)
		l.mu.Unlock()
		select {
		case a := <-reply: // it came at the same moment
			if a.file != nil {
				a.file.Close()
			}
		default:
		}
		return nil, ctx.Err()
	}
}

// follow is the node's side: it hands answers to who waits for them, until the
// front says stop or is gone.
func (l *link) follow() error {
	for {
		m, file, err := l.receive()
		if err != nil || m.Stop {
			if err == nil {
				err = net.ErrClosed
			}
			l.mu.Lock()
			l.closed = err
			for id, reply := range l.pending {
				delete(l.pending, id)
				reply <- answer{message: message{Error: "the mesh ends"}}
			}
			l.mu.Unlock()
			return nil
		}
		l.mu.Lock()
		if reply := l.pending[m.ID]; reply != nil {
			delete(l.pending, m.ID)
			reply <- answer{m, file} // it has room
		} else if file != nil {
			file.Close()
		}
		l.mu.Unlock()
	}
}

// serve is the front's side: it opens what the node asks for, until the node is
// gone.
func (l *link) serve(ctx context.Context, open func(context.Context, message) (*os.File, error)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		m, _, err := l.receive()
		if err != nil {
			return
		}
		wg.Go(func() {
			file, err := open(ctx, m)
			reply := message{ID: m.ID}
			if err != nil {
				reply.Error, reply.Busy = err.Error(), errors.Is(err, unix.EADDRINUSE)
			}
			// If the node is gone, receive will say so.
			_ = l.send(reply, file)
			if file != nil {
				file.Close()
			}
		})
	}
}

// openOutside opens the sockets that the node asks for, in the machine's own
// network.
func openOutside(ctx context.Context, m message) (*os.File, error) {
	switch {
	case m.Listen != "":
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", m.Listen)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		return l.(*net.TCPListener).File()
	case m.Dial != "":
		c, err := (&net.Dialer{}).DialContext(ctx, m.Network, m.Dial)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		switch c := c.(type) {
		case *net.TCPConn:
			return c.File()
		case *net.UDPConn:
			return c.File()
		}
	}
	return nil, errors.New("lab: the node asked for something unknown")
}
