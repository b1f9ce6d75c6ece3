package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal between the user's and a command's: the command
// gets its inner side as its own controlling terminal, with job control and the
// right size.
type terminal struct {
	inner, outer *os.File
	user         *os.File // the user's terminal
	saved        *unix.Termios
	resized      chan os.Signal
	copied       chan struct{}
}

func openTerminal(in, out *os.File) (*terminal, error) {
	saved, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	if err != nil {
		return nil, errors.New("-t needs a terminal, and standard input is none")
	}
	outer, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(int(outer.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		outer.Close()
		return nil, fmt.Errorf("unlock a pseudo-terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(int(outer.Fd()), unix.TIOCGPTN)
	if err != nil {
		outer.Close()
		return nil, fmt.Errorf("name a pseudo-terminal: %w", err)
	}
	inner, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		outer.Close()
		return nil, fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	t := &terminal{inner: inner, outer: outer, user: in, saved: saved, resized: make(chan os.Signal, 1), copied: make(chan struct{})}
	t.resize()

	// Keys go through as they are; the command's side makes sense of them.
	raw := *saved
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, &raw); err != nil {
		inner.Close()
		outer.Close()
		return nil, err
	}
	signal.Notify(t.resized, syscall.SIGWINCH)
	go func() {
		for range t.resized {
			t.resize()
		}
	}()
	go io.Copy(outer, in) // ends with the program: a terminal can not be told to stop reading
	go func() {
		defer close(t.copied)
		io.Copy(out, outer) // until the command's side is closed
	}()
	return t, nil
}

func (t *terminal) resize() {
	size, err := unix.IoctlGetWinsize(int(t.user.Fd()), unix.TIOCGWINSZ)
	if err == nil {
		// A command in a terminal of the wrong size still works.
		_ = unix.IoctlSetWinsize(int(t.outer.Fd()), unix.TIOCSWINSZ, size)
	}
}

// close shows the last output and gives the user's terminal back as it was.
func (t *terminal) close() {
	t.inner.Close()
	<-t.copied
	signal.Stop(t.resized)
	close(t.resized)
	t.outer.Close()
	_ = unix.IoctlSetTermios(int(t.user.Fd()), unix.TCSETS, t.saved)
}
