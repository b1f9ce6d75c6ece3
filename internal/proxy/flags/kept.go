package flags

import (
	"errors"
	"io"
	"os"
)

// identityFD names, by its number, an open file in memory that whoever restarts
// the proxy holds open: the proxy keeps its identity in it over a restart.
const identityFD = "HEDDLE_IDENTITY_FD"

// maxKept bounds what is read of it: a key and some certificates.
const maxKept = 1 << 20

// kept is an agent.Keeper over such a file.
type kept struct{ f *os.File }

// Load implements agent.Keeper.
func (k kept) Load() ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(k.f, 0, maxKept))
}

// Save implements agent.Keeper. One that is cut short by the end of the process
// leaves something that does not parse, which is as good as nothing.
func (k kept) Save(b []byte) error {
	err := k.f.Truncate(0)
	if err == nil {
		_, err = k.f.WriteAt(b, 0)
	}
	return errors.Join(err)
}
