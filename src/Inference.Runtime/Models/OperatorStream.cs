using Inference.Backends;

namespace Inference.Runtime.Models;

/// <summary>
/// Between a family's file and its backend: the same forward pass is first planned (every operator's shapes are checked and the
/// largest workspace is found), then enqueued. Owns the workspace.
/// </summary>
internal sealed class OperatorStream(IBackend backend) : IDisposable
{
    private DeviceBuffer? _workspaceBuffer;
    private Tensor _workspace;
    private long _workspaceBytes;
    private List<string>? _unsupported;

    /// <summary>Plans what <paramref name="forward"/> enqueues; nothing runs.</summary>
    /// <exception cref="BackendException">The backend lacks an operator; all that it lacks are listed.</exception>
    public void Plan(Action forward)
    {
        _unsupported = [];
        try
        {
            forward();
            if (_unsupported.Count > 0)
                throw new BackendException(BackendErrorKind.Request,
                    $"Backend {backend.Info.Name} cannot run this model: {string.Join("; ", _unsupported.Distinct())}.");
        }
        finally
        {
            _unsupported = null;
        }
        if (_workspaceBytes == 0 || (_workspaceBuffer is not null && _workspaceBuffer.SizeBytes >= _workspaceBytes)) return;
        _workspaceBuffer?.Dispose();
        _workspaceBuffer = backend.Allocate(_workspaceBytes, "operator workspace");
        _workspace = Tensor.Create(_workspaceBuffer, DType.U8, checked((int)Math.Min(_workspaceBytes, int.MaxValue)));
    }

    public void Run<TOp>(in TOp op) where TOp : struct, IOperator
    {
        if (_unsupported is null)
        {
            backend.Enqueue(op, _workspace);
            return;
        }
        var plan = backend.Plan(op);
        if (plan.Support == OpSupport.Unsupported) _unsupported.Add($"{typeof(TOp).Name} ({plan.Variant})");
        _workspaceBytes = Math.Max(_workspaceBytes, plan.WorkspaceBytes);
    }

    public void Dispose() => _workspaceBuffer?.Dispose();
}
