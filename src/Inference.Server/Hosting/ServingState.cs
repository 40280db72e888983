namespace Inference.Server.Hosting;

/// <summary>The server's life as its clients and its operator see it. Each state leads only to later ones.</summary>
internal enum ServingState
{
    /// <summary>The model is being loaded or makes its first step; calls are refused with a time to come back.</summary>
    Loading,
    /// <summary>Ready: requests are accepted.</summary>
    Serving,
    /// <summary>Accepted requests run to their end; new ones are refused.</summary>
    Draining,
    /// <summary>Every request has had its end.</summary>
    Stopped,
    /// <summary>Loading failed or the engine broke; the process ends with an error.</summary>
    Failed,
}
