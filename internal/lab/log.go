package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// maxLog is how long a log file gets before it becomes the previous one.
const maxLog = 16 << 20

// logFile keeps what a container prints, across its restarts, in one file and
// its predecessor. Programs write to a pipe, so that /dev/stdout can be opened
// again, as some do for their access log.
type logFile struct {
	path string
	r, w *os.File // the pipe

	mu sync.Mutex
	// mu guards the following.
	file  *os.File
	size  int64
	turns int // how often the file was replaced
	grown chan struct{}
	ended bool
}

// openLog opens the log; its Run moves the bytes.
func openLog(path string) (*logFile, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &logFile{path: path, r: r, w: w, file: file, grown: make(chan struct{})}, nil
}

// run copies until close, and until no process holds the pipe any more.
func (l *logFile) run() {
	buf := make([]byte, 64<<10)
	for {
		n, err := l.r.Read(buf)
		if n > 0 {
			l.write(buf[:n])
		}
		if err != nil {
			break
		}
	}
	l.r.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file.Close()
	l.ended = true
	close(l.grown)
}

// close lets run end.
func (l *logFile) close() { l.w.Close() }

// note writes a line of the lab's own.
func (l *logFile) note(format string, args ...any) {
	l.write([]byte("heddle: " + fmt.Sprintf(format, args...) + "\n"))
}

func (l *logFile) write(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	if l.size > maxLog {
		l.turn()
	}
	// A full disk must not stop the program that prints.
	n, _ := l.file.Write(b)
	l.size += int64(n)
	close(l.grown)
	l.grown = make(chan struct{})
}

func (l *logFile) turn() {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return
	}
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	l.file.Close()
	l.file, l.size = file, 0
	l.turns++
}

// state returns how far the log is, and a channel that is closed when it grew.
func (l *logFile) state() (size int64, turns int, grown <-chan struct{}, ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size, l.turns, l.grown, l.ended
}

// copyTo writes the last lines (all if tail is negative) to w, and with follow
// what comes after them, until ctx or the log ends.
func (l *logFile) copyTo(ctx context.Context, w io.Writer, tail int, follow bool) error {
	size, turns, grown, ended := l.state()
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	offset := int64(0)
	if tail >= 0 {
		if offset, err = lastLines(f, size, tail); err != nil {
			return err
		}
	} else if prev, err := os.Open(l.path + ".1"); err == nil {
		_, err = io.Copy(w, prev)
		prev.Close()
		if err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for {
		n, err := io.Copy(w, io.NewSectionReader(f, offset, size-offset))
		if err != nil {
			return err
		}
		offset += n
		if !follow || ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-grown:
		}
		var now int
		if size, now, grown, ended = l.state(); now != turns {
			// The rest of the old file, then the new one from its start.
			if _, err := io.Copy(w, io.NewSectionReader(f, offset, maxLog*2)); err != nil {
				return err
			}
			next, err := os.Open(l.path)
			if err != nil {
				return err
			}
			f.Close()
			f, offset, turns = next, 0, now
		}
	}
}

// lastLines returns where the last n lines of the first size bytes begin.
func lastLines(f io.ReaderAt, size int64, n int) (int64, error) {
	if n == 0 {
		return size, nil
	}
	const step = 64 << 10
	buf := make([]byte, step)
	end := size
	for lines := 0; end > 0; {
		begin := max(end-step, 0)
		chunk := buf[:end-begin]
		if _, err := f.ReadAt(chunk, begin); err != nil && err != io.EOF {
			return 0, err
		}
		for {
			i := bytes.LastIndexByte(chunk, '\n')
			if i < 0 {
				break
			}
			// The newline that ends the last line begins no line.
			if at := begin + int64(i); at != size-1 {
				if lines++; lines == n {
					return at + 1, nil
				}
			}
			chunk = chunk[:i]
		}
		end = begin
	}
	return 0, nil
}

// lastLine returns the last line that was printed, for a word on why a program
// ended.
func (l *logFile) lastLine() string {
	size, _, _, _ := l.state()
	f, err := os.Open(l.path)
	if err != nil {
		return ""
	}
	defer f.Close()
	at, err := lastLines(f, size, 1)
	if err != nil {
		return ""
	}
	s := bufio.NewScanner(io.NewSectionReader(f, at, size-at))
	s.Scan()
	return s.Text()
}
