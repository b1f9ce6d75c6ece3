package kubeapi

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

// Handler is a store for Follow that keeps nothing: it hands on what it is told.
// Its functions are called from the goroutine of Follow, one at a time.
type Handler[T runtime.Object] struct {
	// All takes all objects: first, and whenever a watch had to begin anew. What is
	// not among them is gone.
	All func([]T)
	// Put takes an object that is new or changed, Gone the last state of one that
	// was deleted.
	Put, Gone func(T)
	// Trim, if set, drops what nobody reads of an object, before it is kept
	// anywhere. It may be called twice for one.
	Trim func(T)
}

// Transformer lets the reflector trim the objects of a first listing as they
// come, so that all of them together are never there whole.
func (h Handler[T]) Transformer() cache.TransformFunc {
	if h.Trim == nil {
		return nil
	}
	return func(o any) (any, error) {
		if object, ok := o.(T); ok {
			h.Trim(object)
		}
		return o, nil
	}
}

func (h Handler[T]) object(o any) (T, error) {
	object, ok := o.(T)
	if !ok {
		return object, fmt.Errorf("a watch brought a %T, not a %T", o, object)
	}
	if h.Trim != nil {
		h.Trim(object)
	}
	return object, nil
}

// Add is called by the reflector, and so are the following.
func (h Handler[T]) Add(o any) error {
	object, err := h.object(o)
	if err == nil {
		h.Put(object)
	}
	return err
}

func (h Handler[T]) Update(o any) error { return h.Add(o) }

func (h Handler[T]) Delete(o any) error {
	object, err := h.object(o)
	if err == nil {
		h.Gone(object)
	}
	return err
}

func (h Handler[T]) Replace(list []any, _ string) error {
	all := make([]T, 0, len(list))
	for _, o := range list {
		object, err := h.object(o)
		if err != nil {
			return err
		}
		all = append(all, object)
	}
	h.All(all)
	return nil
}

func (h Handler[T]) Resync() error { return nil }
