package isolate

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestRefusalsSayWhatToChange(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.ENOSPC} {
		err := Explain(&os.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: errno})
		want := "max_user_namespaces"
		if os.Geteuid() == 0 {
			want = "CAP_SYS_ADMIN"
		}
		if !strings.Contains(err.Error(), want) || !errors.Is(err, errno) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %q, want one line with %s", errno, err, want)
		}
	}
	other := fmt.Errorf("something else")
	if Explain(other) != other {
		t.Error("an error of another kind was changed")
	}
}
