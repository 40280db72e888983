using Inference.Runtime.Engine;
using Inference.Server.Hosting;

namespace Inference.Server.Services;

/// <summary>
/// A generation's part in a session: collects the answer's tokens and, when it ends by itself or at its length, makes prompt and answer the
/// session's. Any other end leaves the session as it was. The session is free again before the client hears of the end.
/// </summary>
internal sealed class SessionTurn(KvSessions sessions, KvSessionTurn session) : IDisposable
{
    private readonly List<int> _answer = [];

    public KvSessionTurn Session => session;

    public void Add(GenerationDelta delta) => _answer.AddRange(delta.TokenIds);

    public async Task EndAsync(GenerationFinished end, ReadRequest read, ServedModel model)
    {
        if (end.Reason is FinishReason.Stop or FinishReason.Length)
        {
            if (end.StopTokenId is { } stop) _answer.Add(stop);
            bool closed = _answer.Count > 0 && model.Defaults.EndTokenIds.Contains(_answer[^1]);
            session.Commit([.. read.Generation.PromptTokenIds, .. _answer], answerOpen: !closed);
            await sessions.RepinAsync(session);
        }
        session.Dispose();
    }

    public void Dispose() => session.Dispose();
}
